"""--config FILE and --toml: a file is the flags that it stands for, so it is the same run."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict, replace

import pytest

from jobs.config import kinds, parsing, recorded
from jobs.config.specs import ConfigError, DiffusionConfig, GanConfig, VaeConfig

EACH = pytest.mark.parametrize("cls", (GanConfig, VaeConfig, DiffusionConfig))
FLAGS = "--preset quickstart --batch 24 --lr 0.0003 --hflip --seed 7 --include *_T1w.*".split()


def flags(cls) -> list[str]:
    if cls is DiffusionConfig:
        return [*(word for word in FLAGS if word != "--hflip"), "--no-conditional", "--attention", ""]
    return FLAGS


@EACH
@pytest.mark.parametrize("form", ("toml", "json"))
def test_a_file_is_the_run_of_the_same_flags(cls, form, tmp_path):
    c = parsing.parse_config(cls, flags(cls))
    file = tmp_path / f"c.{form}"
    file.write_text(recorded.to_toml(c) if form == "toml" else parsing.to_json(replace(c, run="/elsewhere/x")))
    again = parsing.parse_config(cls, [f"--config={file}"])
    assert again == c and again.run == c.run  # the name too: no run is taken from a file
    assert parsing.parse_config(cls, ["--config", str(file), "--run", "r"]).run.endswith("/r")


@EACH
def test_flags_override_a_file_wherever_they_stand(cls, tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('preset = "quickstart"\nbatch = 24\nlr = 0.0003\ncompile = true\n')
    c = parsing.parse_config(cls, [*flags(cls)[:6], "--compile"])
    for words in (["--lr=0.5", "--config", file], ["--config", file, "--lr", "0.5", "--total_kimg", "3"]):
        again = parsing.parse_config(cls, [str(word) for word in words])
        assert (again.batch, again.lr, again.compile) == (24, 0.5, True)
    assert not parsing.parse_config(cls, ["--no-compile", "--config", str(file)]).compile
    assert parsing.parse_config(cls, ["--config", str(file)]).run == c.run


def test_what_follows_still_follows(tmp_path):
    """gamma of 64 px and batch 64 is not that of 128 px; the file says auto where the number is the rule's."""
    c = parsing.parse_config(GanConfig, ["--preset", "oasis64", "--data", "phantom", "--ada-kimg", "7"])
    text = recorded.to_toml(c)
    assert (
        tomllib.loads(text)["gamma"] == "auto"
        and f"# {c.gamma:g} here" in text
        and tomllib.loads(text)["ada_kimg"] == 7
    )
    file = tmp_path / "c.toml"
    file.write_text(text)
    larger = parsing.parse_config(GanConfig, ["--config", str(file), "--resolution", "128", "--crop", "0"])
    assert larger.gamma == pytest.approx(4 * c.gamma, rel=1e-3) and larger.ada_kimg == 7
    assert "# Weight of the R1 (and R2) penalty" in text and "# --- objective ---" in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("krop = 1", "'krop' is no flag of stylegan2"),
        ('batch = "8"', "batch is '8'; write a whole number"),
        ("batch = 8.0", "write a whole number"),
        ("conditional = 1", "write true or false"),
        ("data = 3", "write a text in quotes"),
        ("lr = true", "write a number"),
        ('lr = "auto"', "write a number"),
        ('run = "r"', "run is of one command"),
        ("dry_run = true", "dry_run is of one command"),
        ("lr 3", "cannot be read"),
        ('preset = "adni256"', "--preset quickstart: "),
    ],
)
def test_what_no_file_may_say(text, said, tmp_path):
    file = tmp_path / "c.toml"
    file.write_text(text + "\n")
    with pytest.raises(ConfigError) as error:
        recorded.spread(["--config", str(file), "--preset", "quickstart"], GanConfig)
    assert said in str(error.value) and len(str(error.value).splitlines()) == 1


def test_no_file_and_two_files(tmp_path):
    for words, said in ((["--config"], "name a file"), (["--config", "nowhere.toml"], "cannot be read"),
                        (["--config=a", "--config=b"], "one file")):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            recorded.spread(words, GanConfig)


def test_a_run_will_do_and_says_which_job_it_is_of(tmp_path):
    c = parsing.parse_config(VaeConfig, ["--preset", "quickstart", "--data", "phantom"])
    (tmp_path / "config.json").write_text(json.dumps(asdict(c)))
    assert parsing.parse_config(VaeConfig, ["--config", str(tmp_path)]) == c
    assert recorded.job_in(["--config", str(tmp_path)]) == "vae" and recorded.job_in(["--lr", "1"]) == ""
    (tmp_path / "some.toml").write_text("lr = 0.1\n")
    assert recorded.job_in([f"--config={tmp_path / 'some.toml'}"]) == ""  # any of them
    both = recorded.spread(["--config", str(tmp_path)], *(kinds.JOBS[name].config for name in ("diffusion", "vae")))
    assert "--latent-channels=8" in both


def test_auto_batch_of_a_file(tmp_path, monkeypatch):
    file = tmp_path / "c.toml"
    file.write_text('preset = "quickstart"\nbatch = "auto"\n')
    monkeypatch.setattr(parsing, "local_card", lambda: None)
    with pytest.raises(ConfigError, match="--batch auto"):
        parsing.parse_config(VaeConfig, ["--config", str(file)])
