"""The plumbing around torch-fidelity's network, with a stand-in for it, and with the real one where it is installed."""

import importlib
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dither.errors import BadModel, BadValue
from dither.extractors import open_extractor, open_inception

URL = "https://example.invalid/releases/weights-inception.pth"


class Branch(nn.Module):
    """Keeps 17 x 17 places; channel k is the mean colour times k plus the place."""

    def forward(self, x):
        place = torch.arange(17.0 * 17).reshape(1, 1, 17, 17)
        return x.mean((1, 2, 3)).reshape(-1, 1, 1, 1) + 1000 * torch.arange(9.0).reshape(1, -1, 1, 1) + place


class StandIn(nn.Module):
    """Takes what FeatureExtractorInceptionV3 takes and gives results of its shapes."""

    def __init__(self, name, features_list, feature_extractor_weights_path=None, feature_extractor_internal_dtype=None):
        super().__init__()
        assert features_list == ["2048", "logits_unbiased"]
        self.Mixed_6d = nn.Module()
        self.Mixed_6d.branch1x1 = Branch()
        self.fc = nn.Linear(3, 4)
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=True))

    def forward(self, x):
        assert x.dtype == torch.uint8
        assert x.shape[1] == 3
        pool = x.float().mean((2, 3))
        self.Mixed_6d.branch1x1(x.float())
        return pool, pool @ self.fc.weight.T


@pytest.fixture
def stand_in(monkeypatch):
    package, module = (
        types.ModuleType("torch_fidelity"),
        types.ModuleType("torch_fidelity.feature_extractor_inceptionv3"),
    )
    module.FeatureExtractorInceptionV3, module.URL_INCEPTION_V3 = StandIn, URL
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.fixture
def weights(tmp_path):
    file = tmp_path / "weights.pth"
    torch.manual_seed(0)
    torch.save(nn.ModuleDict({"fc": nn.Linear(3, 4)}).state_dict(), file)
    return file


@pytest.mark.usefixtures("stand_in")
class TestPlumbing:
    def test_three_outputs_in_one_pass(self, weights, pictures):
        extract = open_inception(str(weights), batch=2)
        pool, logits, spatial = extract.both(pictures)
        assert pool.shape == (5, 3)
        assert logits.shape == (5, 4)
        assert spatial.shape == (5, 2023)
        np.testing.assert_allclose(pool, pictures.mean((1, 2)), rtol=1e-5)
        np.testing.assert_allclose(
            logits, pool @ torch.load(weights, weights_only=True)["fc.weight"].numpy().T, rtol=1e-4
        )
        features, classes = extract(pictures)
        np.testing.assert_array_equal(features, pool)
        np.testing.assert_array_equal(classes, logits)
        np.testing.assert_array_equal(extract.spatial(pictures), spatial)

    def test_spatial_features_are_seven_channels_of_each_place_in_turn(self, weights, pictures):
        """Rows, then columns, then channels: as TensorFlow lays out N x H x W x C."""
        spatial = open_inception(str(weights)).both(pictures[:1])[2].reshape(17, 17, 7)
        mean = pictures[0].mean()
        for row, column, channel in [(0, 0, 0), (0, 0, 6), (0, 1, 0), (1, 0, 0), (16, 16, 6)]:
            assert spatial[row, column, channel] == pytest.approx(mean + 1000 * channel + 17 * row + column, rel=1e-5)

    def test_no_hook_stays_behind(self, weights, pictures):
        extract = open_inception(str(weights))
        extract(pictures)
        assert not extract.network.Mixed_6d.branch1x1._forward_hooks

    def test_grey_is_repeated(self, weights, pictures):
        extract = open_inception(str(weights))
        grey = pictures[..., :1]
        np.testing.assert_array_equal(extract.both(grey)[2], extract.both(np.repeat(grey, 3, axis=-1))[2])

    def test_the_name_depends_on_the_weights_and_not_on_where_they_lie(self, weights, tmp_path):
        name = open_inception(str(weights)).name
        assert name.startswith("inception@")
        assert name.endswith("[TF1 bilinear 299, pool3]")
        copy = tmp_path / "copy.pth"
        copy.write_bytes(weights.read_bytes())
        opened = open_extractor(f"inception:{copy}")
        assert opened.name == name
        assert opened.spatial_name == name.replace("pool3", "mixed_6 spatial")
        torch.save({k: v + 1 for k, v in torch.load(weights, weights_only=True).items()}, copy)
        assert open_inception(str(copy)).name != name

    def test_pictures_are_checked(self, weights, pictures):
        with pytest.raises(BadValue, match="inception@"):
            open_inception(str(weights))(pictures.astype(np.float32))

    def test_weights_that_could_run_code_are_refused_unread(self, tmp_path):
        ran = tmp_path / "ran"
        torch.save({"fc.weight": Evil(ran)}, tmp_path / "evil.pth")
        with pytest.raises(BadModel, match="no file of plain tensors"):
            open_inception(str(tmp_path / "evil.pth"))
        assert not ran.exists()

    @pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04junk", b"\x80\x02."])
    def test_junk_is_refused(self, tmp_path, content):
        (tmp_path / "junk.pth").write_bytes(content)
        with pytest.raises(BadModel, match=r"junk\.pth"):
            open_inception(str(tmp_path / "junk.pth"))

    def test_what_is_no_table_of_tensors_is_refused(self, tmp_path):
        torch.save([1, 2], tmp_path / "list.pth")
        with pytest.raises(BadModel, match="no table of tensors"):
            open_inception(str(tmp_path / "list.pth"))

    def test_weights_of_another_network_are_refused(self, tmp_path):
        torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
        with pytest.raises(BadModel, match=r"other\.pth holds the weights of another network"):
            open_inception(str(tmp_path / "other.pth"))

    def test_a_missing_file_is_named(self):
        with pytest.raises(BadModel, match=r"there is no weights file /no/such\.pth"):
            open_inception("/no/such.pth")

    def test_without_a_file_the_one_in_the_cache_serves(self, weights, tmp_path, monkeypatch):
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
        monkeypatch.setattr(torch.hub, "download_url_to_file", download(weights))
        first = open_extractor("inception")
        monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
        assert open_extractor("inception").name == first.name == open_inception(str(weights)).name

    def test_no_network_says_how_to_give_the_file(self, tmp_path, monkeypatch):
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
        monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
        with pytest.raises(BadModel, match=r"cannot be downloaded \(no route\): give the file as inception:PATH"):
            open_extractor("inception")


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def download(source):
    def copy(url, target, progress):
        assert url == URL
        Path(target).write_bytes(source.read_bytes())

    return copy


def no_network(url, target, progress):
    raise OSError("no route")


@pytest.fixture(scope="module")
def real():
    """torch-fidelity's module."""
    pytest.importorskip("torchvision", reason="needs torch-fidelity: pip install 'dither[fid]'", exc_type=Exception)
    pytest.importorskip("torch_fidelity", reason="needs torch-fidelity: pip install 'dither[fid]'")
    return importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")


@pytest.fixture(scope="module")
def random_network(real, tmp_path_factory):
    """The real network with random weights, and the file that holds them."""
    file = tmp_path_factory.mktemp("inception") / "random.pth"
    with pytest.MonkeyPatch.context() as patch:
        torch.save({}, file)
        patch.setattr(real.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        network = real.FeatureExtractorInceptionV3("random", ["2048"], feature_extractor_weights_path=str(file))
    state = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, file)  # a plain table without counters, as the conversion from TensorFlow writes it
    return network, file


class TestRealNetwork:
    def test_shapes_and_definitions(self, random_network, pictures):
        network, file = random_network
        pool, logits, spatial = open_inception(str(file), batch=2).both(pictures)
        assert pool.shape == (5, 2048)
        assert logits.shape == (5, 1008)
        assert spatial.shape == (5, 2023)
        np.testing.assert_allclose(logits, pool @ network.fc.weight.numpy().T, rtol=1e-3, atol=1e-5)  # no bias
        assert (pool >= 0).all()
        assert (spatial >= 0).all()  # after the ReLU
        assert spatial.std() > 0

    def test_spatial_features_are_the_branch_in_tensorflow_order(self, random_network, pictures):
        network, file = random_network
        seen = []
        hook = network.Mixed_6d.register_forward_hook(lambda module, inputs, output: seen.append(output))
        with torch.no_grad():
            network(torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy()))
        hook.remove()
        block = seen[0].numpy()  # (5, 768, 17, 17): branch1x1 comes first
        assert block.shape == (5, 768, 17, 17)
        spatial = open_inception(str(file)).spatial(pictures).reshape(5, 17, 17, 7)
        np.testing.assert_allclose(spatial, block[:, :7].transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-6)

    def test_its_resize_is_that_of_tensorflow_1(self, real):
        """Source place = target place times the ratio, from the corner: 2 to 5 places by hand."""
        x = torch.tensor([[[[0.0, 10.0], [20.0, 30.0]]]])
        y = real.interpolate_bilinear_2d_like_tensorflow1x(x, size=(5, 5), align_corners=False)
        steps = np.array([0.0, 0.4, 0.8, 1.0, 1.0])  # 0, .4, .8, 1.2, 1.6, held at the last place
        np.testing.assert_allclose(y[0, 0], 10 * steps[None, :] + 20 * steps[:, None], atol=1e-4)

    def test_same_again_and_in_other_batches(self, random_network, pictures):
        _, file = random_network
        whole = open_inception(str(file)).both(pictures)
        parts = open_inception(str(file), batch=2).both(pictures)
        for a, b in zip(whole, parts, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)

    def test_the_true_weights_load_as_plain_tensors(self, real, pictures):
        file = Path(torch.hub.get_dir()) / "checkpoints" / real.URL_INCEPTION_V3.rsplit("/", 1)[-1]
        if not file.is_file():
            pytest.skip(f"needs Inception's weights at {file}")
        pool, logits = open_extractor("inception")(pictures)
        assert pool.shape == (5, 2048)
        assert logits.shape == (5, 1008)
        assert (pool >= 0).all()
        assert pool.std() > 0.1
