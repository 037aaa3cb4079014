from dither.report.doubts import guards, matrices
from dither.report.entries import open_book
from dither.report.tables import comparison as table
from dither.report.tables import detectable_note
from dither.report.verdict import cards, cautions, front_sentence, shared_cautions, verdict


def column(found, head):
    at = [title for title, _, _ in found.heads].index(head)
    return [row.cells[at] for row in found.rows if row.kind == "quantized"]


def said(parts):
    return "".join(part.text for part in parts)


def test_only_what_beats_all_others_is_best(comparison):
    book = open_book([comparison])
    marks = [cell.mark for cell in column(table(book), "PSNR, dB")]
    assert marks == ["best", "", "", "", "", ""]
    comparison["results"] = comparison["results"][3:5]
    comparison["pairs"] = [{"metric": "psnr_db", "a": 0, "b": 1, "difference": -0.4, "distinguishable": False}]
    assert [cell.mark for cell in column(table(open_book([comparison])), "PSNR, dB")] == ["undecided", "undecided"]


def test_ranks_are_ranges(comparison):
    found = table(open_book([comparison]))
    shown = [cell.shown for cell in column(found, "Rank, PSNR")]
    assert shown[0] == "1"
    assert "3–4" in shown
    heads = [title for title, _, _ in table(open_book(comparison["results"])).heads]
    assert not any(head.startswith("Rank") for head in heads)


def test_columns_without_values_are_left_out(result):
    heads = [title for title, _, _ in table(open_book([result])).heads]
    assert {"LPIPS", "FID", "KID", "Inception score", "Speed", "Memory", "Bits / weight", "Whole model"} <= set(heads)
    assert "Recall" not in heads
    bare = {"kind": "eval", "schema": 1}
    assert [title for title, _, _ in table(open_book([bare])).heads] == ["Result"]


def test_simulated_layers_claim_no_speed(other_result):
    assert [cell.shown for cell in column(table(open_book([other_result])), "Speed")] == ["simulated"]
    assert not any(card.title == "Speed" for card in cards(other_result))


def test_a_speed_whose_interval_holds_one_is_undecided(result):
    assert [cell.mark for cell in column(table(open_book([result])), "Speed")] == [""]
    result["speed"]["ci95"] = [0.8, 1.5]
    assert [cell.mark for cell in column(table(open_book([result])), "Speed")] == ["undecided"]
    assert "no difference is shown" in said(verdict(result)[2])


def test_differences_within_the_interval_are_undecided(result):
    found = table(open_book([result]))
    assert [cell.mark for cell in column(found, "Class accuracy")] == ["undecided"]
    assert [cell.mark for cell in column(found, "FD to real")] == [""]
    reading = {row.cells[0].shown: (row.cells[-1].shown, row.cells[-1].mark) for row in guards(result).rows}
    assert reading["FID"] == ("", "undecided")
    assert reading["Recall"][0].startswith("precision and recall need 1000")
    result["guards"][0]["difference_ci95"] = [0.1, 0.3]
    result["guards"][1]["difference_ci95"] = [0.1, 0.3]
    result["guards"][1]["difference"] = 0.2
    readings = [row.cells[-1].shown for row in guards(result).rows]
    assert readings[:2] == ["worse", "better"]


def test_distances_in_further_features_have_their_column(result):
    first = {"features": result["fd"]["features"], "to_full_precision": 1.0}
    result["fds"] = [first, {"features": "dinov2", "to_full_precision": 5.25, "ci95": [4.0, 6.5], "noise_floor": 80.0}]
    found = table(open_book([result]))
    assert [(cell.shown, cell.note) for cell in column(found, "FD, dinov2")] == [("5.25", "4 to 6.5")]
    assert not any(head == f"FD, {first['features']}" for head, _, _ in found.heads)


def test_an_interval_is_preferred_to_a_standard_error(result):
    result["fd"]["difference_ci95"] = [-0.5, 0.7]
    cell = column(table(open_book([result])), "FD to real")[0]
    assert (cell.note, cell.mark) == ("−0.5 to +0.7", "undecided")


def test_pairs_turn_round(comparison):
    grid = matrices(open_book([comparison]))[0]
    assert grid.metric.key == "psnr_db"
    assert [square.kind for square in grid.rows[0][2]] == ["none", *["better"] * 5]
    assert [row[2][0].kind for row in grid.rows] == ["none", *["worse"] * 5]
    assert grid.rows[3][2][4].kind == grid.rows[4][2][3].kind == "undecided"
    assert grid.rows[3][2][4].shown[1:] == grid.rows[4][2][3].shown[1:]
    distances = matrices(open_book([comparison]))[1]
    assert distances.rows[0][2][5].kind == "better", "a smaller distance is better"


def test_detectable_differences_are_printed(comparison):
    note = detectable_note(open_book([comparison]))
    assert note.startswith("Minimum detectable difference, with 80 % power at 5 %: PSNR ")
    assert "SSIM" in note
    assert "FD" in note
    assert detectable_note(open_book([{"kind": "eval", "schema": 1}])) == ""


def test_verdict_is_honest(result, other_result):
    sentences = [said(parts) for parts in verdict(result)]
    assert sentences[0].startswith("1.80× smaller (7.35 MB became 4.09 MB), at a true 8.17 bits per weight")
    assert "as fast as full precision" in sentences[2]
    assert said(verdict(other_result)[2]) == "Simulated: no speed is claimed."
    result["psnr_db"] |= {"mean": 59.7, "ci95": [59.2, 60.0]}
    assert "cannot be told from full precision" in said(verdict(result)[1])
    result["size"]["ratio"] = 0.5
    assert said(verdict(result)[0]).startswith("2.00× larger")
    assert verdict({}) == []


def test_cautions_of_a_sceptic(result, other_result):
    assert cautions(open_book([result]).entries[0]) == []
    titles = [caution.title for caution in cautions(open_book([other_result]).entries[0])]
    assert titles == ["Simulated", "Skipped"]
    result |= {"n": 8, "noise_floor": None, "fd": {"reason": "needs 64 pictures; there are 8"}}
    result["size"]["ratio"] = 0.9
    titles = [caution.title for caution in cautions(open_book([result]).entries[0])]
    assert titles == ["Few pictures", "No noise floor", "No Fréchet distance", "Not smaller"]
    shared = shared_cautions(open_book([result, other_result]))
    assert "smoothquant w8a8" in next(c.text for c in shared if c.title == "Few pictures")


def test_the_front_in_words(comparison):
    shown = said(front_sentence(open_book([comparison])))
    assert shown.startswith("Worth their size in PSNR, from the smallest on: rtn w3a8 (4.10× smaller, 18.1 dB), ")
    assert "41.2 dB). Not known to be better than something as small: rtn w4a8. Full precision against itself" in shown
    assert front_sentence(open_book([{"kind": "eval", "schema": 1}] * 2)) == []
