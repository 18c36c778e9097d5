"""ResNet features against PyTorch: a compact ResNet with torchvision's tensor names, random weights, same images."""

import jax
import numpy as np
import pytest

from spectra_jax.models import build_model

torch = pytest.importorskip("torch", reason="parity with PyTorch is tested where PyTorch is installed")
from safetensors.numpy import load_file, save_file  # noqa: E402
from torch import nn  # noqa: E402

LAYOUTS = {18: ((2, 2, 2, 2), 1), 34: ((3, 4, 6, 3), 1), 50: ((3, 4, 6, 3), 4)}


class Block(nn.Module):
    """A basic block (expansion 1) or a bottleneck block (expansion 4)."""

    def __init__(self, width_in, width, stride, expansion):
        super().__init__()
        kernels = ((3, stride), (3, 1)) if expansion == 1 else ((1, 1), (3, stride), (1, 1))
        self.count = len(kernels)
        channels = width_in
        for index, (size, step) in enumerate(kernels, start=1):
            out = width * expansion if index == self.count else width
            setattr(self, f"conv{index}", nn.Conv2d(channels, out, size, step, size // 2, bias=False))
            setattr(self, f"bn{index}", nn.BatchNorm2d(out))
            channels = out
        self.downsample = nn.Sequential()
        if stride != 1 or width_in != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(width_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x):
        y = x
        for index in range(1, self.count + 1):
            y = getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(y))
            y = torch.relu(y) if index < self.count else y
        return torch.relu(y + self.downsample(x))


class TorchResNet(nn.Module):
    """Named as torchvision names it; the forward pass stops at the pooled features."""

    def __init__(self, depth):
        super().__init__()
        blocks, expansion = LAYOUTS[depth]
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        channels = 64
        for stage, count in enumerate(blocks):
            layers = []
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                layers.append(Block(channels, 64 * 2**stage, stride, expansion))
                channels = 64 * 2**stage * expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(channels, 10)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return x.mean((2, 3))


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_resnet_features_equal_torch(depth, tmp_path):
    torch.manual_seed(depth)
    reference = TorchResNet(depth).eval()
    with torch.no_grad():
        for module in reference.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.0)
                module.bias.normal_(0, 0.1)
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    path = tmp_path / "resnet.safetensors"
    save_file({name: tensor.numpy() for name, tensor in reference.state_dict().items()}, path)
    images = np.random.default_rng(0).random((2, 96, 96, 3), np.float32)
    normalised = (images - np.array([0.485, 0.456, 0.406], np.float32)) / np.array([0.229, 0.224, 0.225], np.float32)
    with torch.no_grad():
        expected = reference(torch.from_numpy(normalised).permute(0, 3, 1, 2)).numpy()

    model = build_model("resnet", num_attributes=3, num_classes=2, depth=depth, norm="frozen_batch")
    params = model.load_pretrained(model.init(jax.random.key(0), (96, 96, 3)), path)
    features = np.asarray(jax.jit(model.features)(params, jax.numpy.asarray(images)))
    scale = np.abs(expected).max()
    print(f"ResNet-{depth}: largest difference {np.abs(features - expected).max():.1e}, largest feature {scale:.2f}")
    np.testing.assert_allclose(features, expected, atol=1e-4 * max(scale, 1), rtol=0)

    tensors = load_file(path)
    tensors["conv1.weight"] = tensors["conv1.weight"][:, :, :5, :5]
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)
    with pytest.raises(ValueError, match=r"'conv1.weight' has shape \(5, 5, 3, 64\)"):
        model.load_pretrained(params, path)
    del tensors["layer1.0.bn1.running_var"], tensors["conv1.weight"]
    save_file(tensors, path)
    with pytest.raises(ValueError, match="no tensor"):
        model.load_pretrained(params, path)


def test_efficientnet_lite0_features_equal_the_published_implementation(tmp_path):
    published = pytest.importorskip("efficientnet_lite_pytorch", reason="the reference implementation is not installed")
    from data_prep.pretrained import PretrainedError, convert, installed_weights

    try:
        source = installed_weights()
    except PretrainedError as error:
        pytest.skip(str(error))
    reference = published.EfficientNet.from_name("efficientnet-lite0")
    reference.load_state_dict(torch.load(source, weights_only=True))
    images = np.random.default_rng(0).random((2, 224, 224, 3), np.float32)
    with torch.no_grad():
        pixels = torch.from_numpy((255 * images - 127) / 128).permute(0, 3, 1, 2)
        expected = reference.eval().extract_features(pixels).mean((2, 3)).numpy()
    convert(source, tmp_path / "lite0.safetensors")
    model = build_model("efficientnet_lite0", num_attributes=3, num_classes=2)
    params = model.init(jax.random.key(0), (224, 224, 3))
    params = model.load_pretrained(params, tmp_path / "lite0.safetensors")
    features = np.asarray(jax.jit(model.features)(params, jax.numpy.asarray(images)))
    print(f"EfficientNet-Lite0: largest difference {np.abs(features - expected).max():.1e}")
    np.testing.assert_allclose(features, expected, atol=1e-4)
