"""Which slices weights learnt from, as far as anybody can know."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
from test_predict import make_generator, write

from jobs.config.specs import ConfigError
from jobs.predict import learnt
from jobs.run.attempt import check_data
from jobs.run.rundir import RunDir

PACK = SimpleNamespace(digest="1" * 64, path="train.pack")
ELSE = "0" * 64  # the digest of slices that nobody compares with


def noted(run, digest, changed="", **config) -> RunDir:
    """What a run that trained on the slices of a digest says of itself."""
    run.mkdir(exist_ok=True)
    (run / "config.json").write_text(json.dumps({"split": "train", "init_from": ""} | config))
    (run / "data.json").write_text(json.dumps({"digests": {"train": digest}}))
    (run / "attempts.jsonl").write_text(json.dumps({"event": "override", "changed": changed}) + "\n")
    return RunDir(run)


def test_weights_that_began_with_those_of_others_are_refused_or_doubted(tmp_path):
    """--init-from, --override and a VAE: whoever was learnt from has to be compared with."""
    far, run = tmp_path / "far", tmp_path / "run"
    began = dict(init_from=str(far))

    def doubt(**config) -> str:
        return learnt.unsure_of_run(noted(run, PACK.digest, **config), PACK, "their run")

    assert doubt() == "" and "no config.json" in doubt(**began)
    noted(far, PACK.digest)
    assert doubt(**began) == "" and "one another" in doubt(init_from=str(run))
    assert doubt(changed="slices (held out)") == doubt(changed="--lr 1 -> 2") == ""
    for changed in ("slices (train)", "--split train -> test"):
        with pytest.raises(ConfigError, match="went on with other slices"):
            doubt(changed=changed)
    doubt()
    check_data(RunDir(run), SimpleNamespace(override=True), [], {"train": ELSE}, lambda text: None)
    check_data(RunDir(run), SimpleNamespace(override=True), [], {"train": PACK.digest}, lambda text: None)
    with pytest.raises(ConfigError, match="went on with other slices"):
        learnt.unsure_of_run(RunDir(run), PACK, "their run")
    for wrong in (
        dict(digest=ELSE),
        dict(digest=PACK.digest, split="all"),
        dict(digest=PACK.digest, changed="slices ("),
    ):
        noted(far, **wrong)
        with pytest.raises(ConfigError, match=f"{far}.*(copies of those|held-out people)"):
            doubt(**began)
    for name, words in (("attempts.jsonl", "has no attempts.jsonl"), ("data.json", "no data.json that can be read")):
        doubt()
        (run / name).unlink()
        assert words in learnt.unsure_of_run(RunDir(run), PACK, "their run")


def test_a_latent_network_is_as_well_known_as_its_vae(tmp_path):
    vae, run = tmp_path / "vae", tmp_path / "run"
    noted(run, PACK.digest, space="latent", vae="")

    def doubt() -> str:
        return learnt.unsure_of_run(RunDir(run), PACK, "their run")

    assert "no vae.safetensors" in doubt()
    write(run / "vae.safetensors", make_generator())
    assert "not there, or has other weights" in doubt()
    noted(vae, PACK.digest)
    shutil.copy(run / "vae.safetensors", vae / "weights.safetensors")
    assert doubt() == ""
    noted(vae, ELSE)
    with pytest.raises(ConfigError, match="copies of those"):
        doubt()
    shutil.rmtree(vae)
    write(run / "vae.safetensors", make_generator(), split="all")
    with pytest.raises(ConfigError, match="held-out people"):
        doubt()
