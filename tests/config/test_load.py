import pytest
import yaml

from protoseg.config.load import load_config
from protoseg.errors import ConfigError
from protoseg.files import PROJECT_ROOT
from protoseg.input_rule import ResizeConfig

CONFIGS = sorted((PROJECT_ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_shipped_config_is_valid_and_has_a_header(path):
    load_config(path)
    text = path.read_text()
    for word in ("command", "hardware", "time", "result"):
        assert f"#   {word}" in text, f"{path.name} does not state its {word}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.encodr=x"], "model.encodr: unknown key"),
        (["modle.encoder=x"], "modle: unknown key"),
        (["train.batch_size=2.7"], "train.batch_size.*valid integer.*'2.7'"),
        (["model.architecture=resnet"], "model.architecture: Input should be 'deeplabv3plus'"),
        (["data.kind=files"], "data.kind=files needs data.labeled, data.val, data.classes"),
        (["views.complementary_dropout=true"], "views.complementary_dropout needs views.strong_views=2"),
        (["train.epochs=3"], "exactly one of train.max_steps and train.epochs"),
        (["model.architecture=dpt"], "needs a vision transformer"),
        (["method.preset=fixmatch", "pseudo_labels.agreement=heads"], "needs method.prototypes=true"),
        (["data.in_channels=4", "data.mean=[0.1]"], "data.mean has 1 values, data.in_channels is 4"),
        (["data.resize.mode=fixed"], "resize.mode=fixed needs resize.height"),
        (["batch"], "must have the form key.sub=value"),
        (["views.crop=[1,"], "not valid JSON"),
        (["optim.lr=0"], "optim.lr: Input should be greater than 0"),
        (["model.output_stride=12"], "model.output_stride: Input should be 8, 16 or 32"),
    ],
)
def test_wrong_settings_are_named(overrides, message):
    base = ["train.max_steps=10"] if "train.epochs=3" in overrides else []
    with pytest.raises(ConfigError, match=message):
        load_config(None, [*base, *overrides])


def test_several_mistakes_are_all_reported():
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["model.a=1", "train.seed=-1"])
    assert "model.a" in str(caught.value)
    assert "train.seed" in str(caught.value)


def test_overrides_are_parsed_by_type_and_win_over_the_file(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("optim: {lr: 1e-3}\nrun: {name: '1_16'}\ntrain: {max_steps: 7}\n")
    config = load_config(
        file,
        ["train.max_steps=9", "views.crop=[64,96]", "data.mean=null", "model.output_stride=16",
         "views.strong_views=2"],
    )  # fmt: skip
    assert (config.model.output_stride, config.views.strong_views) == (16, 2)
    assert config.optim.lr == 1e-3
    assert config.run.name == "1_16"
    assert config.train.max_steps == 9
    assert config.views.crop == (64, 96)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.mean=[123.7,116.3,103.5]", "divide it by 255"),
        ("data.std=[0,1,1]", "above 0"),
        ("views.jitter_strength=[0.5,0.5,0.5,0.9]", r"hue in \[0, 0.5\]"),
        ("views.jitter_strength=[-0.1,0.5,0.5,0.1]", "must be brightness"),
        ("views.blur_sigma=[2.0,0.1]", "low <= high"),
    ],
)
def test_views_and_normalisation_out_of_range(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, [override])


def test_presets_are_below_given_values():
    config = load_config(None, ["model.preset=pcr_resnet101", "model.linear_head_channels=128"])
    assert config.model.encoder == "resnet101c.gluon_in1k"
    assert config.model.linear_head_channels == 128
    assert load_config(None, ["method.preset=supervised"]).method.unlabeled is False
    config = load_config(None, ["method.preset=unimatch_v2", "views.mixing_partner=next"])
    assert config.views.strong_views == 2
    assert config.views.mixing_partner == "next"


def test_a_resolved_config_reads_back_the_same(tmp_path):
    config = load_config(None, ["method.preset=unimatch_v2", "model.preset=dinov2_small_dpt"])
    file = tmp_path / "resolved.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config(file) == config


def test_a_file_holds_only_what_differs_from_its_base(tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "a.yaml").write_text(
        "train: {max_steps: 9, batch_size: 2}\nviews: {crop: [64, 64]}\noptim: {lr: 0.1}\nrun: {name: a}\n"
    )
    (tmp_path / "b.yaml").write_text("base: shared/a.yaml\nrun: {name: b}\nviews: {crop: [32, 96]}\n")
    (tmp_path / "c.yaml").write_text("base: b.yaml\ntrain: {max_steps: null, epochs: 3}\n")
    config = load_config(tmp_path / "c.yaml", ["optim.lr=0.3"])
    assert (config.run.name, config.views.crop, config.optim.lr) == ("b", (32, 96), 0.3)
    assert (config.train.batch_size, config.train.max_steps, config.train.epochs) == (2, None, 3)
    assert load_config(tmp_path / "b.yaml").train.max_steps == 9


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("b.yaml", r"b\.yaml: base leads back to where it started: a\.yaml -> b\.yaml -> a\.yaml"),
        ("a.yaml", r"base leads back to where it started: a\.yaml -> a\.yaml"),
        ("none.yaml", r"a\.yaml: base none\.yaml not found; it is looked for in"),
        ("[b.yaml]", r"a\.yaml: base must be the path of a config file, got \['b\.yaml'\]"),
    ],
)
def test_a_base_that_cannot_be_used(tmp_path, base, message):
    (tmp_path / "a.yaml").write_text(f"base: {base}\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "a.yaml")


def test_variants_differ_from_their_base_in_what_their_names_say():
    folder = PROJECT_ROOT / "configs"
    for variant, base, changed in (
        ("camvid_23_efficientnet_lite0", "camvid_46_efficientnet_lite0",
         {"run.name", "data.labeled", "data.unlabeled"}),
        ("voc_183_pcr_resnet101_1gpu", "voc_183_pcr_resnet101", {"run.name", "train.accumulate"}),
    ):  # fmt: skip
        one, other = (load_config(folder / f"{name}.yaml").model_dump() for name in (variant, base))
        found = {f"{s}.{k}" for s, values in one.items() for k, v in values.items() if v != other[s][k]}
        assert found == changed


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "just text"])
def test_files_that_are_not_mappings(tmp_path, text):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        load_config(file)


def test_missing_file_lists_the_shipped_ones():
    with pytest.raises(ConfigError, match=r"quickstart\.yaml"):
        load_config("nowhere.yaml")


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (ResizeConfig(), (300, 400)),
        (ResizeConfig(mode="fixed", height=100, width=50), (100, 50)),
        (ResizeConfig(mode="short_side", size=150), (150, 200)),
        (ResizeConfig(mode="long_side", size=200), (150, 200)),
    ],
)
def test_target_sizes(rule, expected):
    assert rule.target_size(300, 400) == expected


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml", "configs/quickstart.yaml"])
def test_a_shipped_configuration_is_found_by_name_from_anywhere(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert load_config(name).run.name == "quickstart"
    assert load_config("camvid_23_efficientnet_lite0").run.name == "camvid_23", "its base lies beside it"
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("run: {name: mine}\n")
    assert load_config(name).run.name == "mine", "a file of one's own comes first"


def test_an_installed_package_has_its_configurations_inside(tmp_path, monkeypatch):
    (tmp_path / "protoseg" / "configs").mkdir(parents=True)
    (tmp_path / "protoseg" / "configs" / "small.yaml").write_text("run: {name: small}\n")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "small.yaml").write_text("run: {name: of_another_package}\n")
    monkeypatch.setattr("protoseg.config.load.PROJECT_ROOT", tmp_path)
    monkeypatch.chdir(tmp_path / "protoseg")
    assert load_config("small").run.name == "small"
