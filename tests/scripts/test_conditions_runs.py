"""Runs that are told columns of a table: learnt, resumed, refused where the table changed, and asked for pictures."""

import csv
import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from inprocess import run_main, run_predict
from PIL import Image
from reading import PictureReader
from rulers import SEEN, person_truth
from tiny import ROOT, output, rows, train

from data.phantom_people import person_slice, phantom_person
from jobs.predict import load
from jobs.predict.named import UsageError
from jobs.training.weights import read_weights

SCRIPTS = {
    "train_gan.py": ["--loss", "rpgan"],
    "train_diffusion.py": [*"--space pixel --widths 8,16 --no-conditional --class-dropout 0.3".split()],
}
PERSON = "p{}_{}.png"


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Ten people of two classes with four slices each; a third of the table's cells are empty."""
    folder = tmp_path_factory.mktemp("people")
    lines, holes = ["person,age,sex"], np.random.default_rng(0).random((14, 2)) < 0.3
    for k in range(14):
        split = "train" if k < 10 else "test"
        cells = [str(60 + 2 * k), "FM"[k // 2 % 2]]
        lines.append(",".join([f"p{k}", *("" if hole else cell for hole, cell in zip(holes[k], cells, strict=True))]))
        for z in range(5):
            file = folder / split / ("AD", "NC")[k % 2] / PERSON.format(k, z)
            file.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng([k, z]).integers(0, 255, (40, 40), np.uint8)
            Image.fromarray(noise).save(file)
    (folder / "people.csv").write_text("\n".join(lines) + "\n")
    return folder


def flags_of(script, people, *more):
    return ["--data", people, "--table", people / "people.csv", "--condition", "age,slice,sex", *SCRIPTS[script], *more]


@pytest.fixture(scope="module")
def runs(people, packs, tmp_path_factory):
    """{script: a run of 400 images}."""
    folder = tmp_path_factory.mktemp("told")
    found = {}
    for script in SCRIPTS:
        run = folder / script.removesuffix(".py")
        outcome = run_main(script, "--run", run, *flags_of(script, people), "--total-kimg", 0.4, packs=packs)
        assert outcome.code == 0, outcome.said
        assert "condition age 60 to" in outcome.said and "; unknown of " in outcome.said
        found[script] = run
    return found


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_run_says_what_it_was_told(runs, script):
    run = runs[script]
    assert json.loads((run / "config.json").read_text())["condition"] == "age,sex,slice"
    tensors, about = read_weights(run / "weights.safetensors")
    stored = {c["name"]: c for c in json.loads((run / "data.json").read_text())["conditions"]}
    assert [c["name"] for c in about["conditions"]] == ["age", "sex", "slice"] == list(stored)
    assert stored["age"]["missing"] > 0 and stored["sex"]["levels"] == ["F", "M"] and stored["slice"]["missing"] == 0
    mean = next(v for k, v in tensors.items() if k.endswith("conditions.parts.0.mean"))
    assert float(mean) == pytest.approx(about["conditions"][0]["mean"], rel=1e-6)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_run_that_goes_on_is_the_one_that_was_not_interrupted(runs, people, packs, tmp_path, script):
    run = tmp_path / "run"
    for kimg in (0.2, 0.4):
        outcome = run_main(script, "--run", run, *flags_of(script, people), "--total-kimg", kimg, packs=packs)
        assert outcome.code == 0, outcome.said
    ours, theirs = (read_weights(r / "weights.safetensors")[0] for r in (run, runs[script]))
    assert all(ours[k].equal(v) for k, v in theirs.items()) and ours.keys() == theirs.keys()


def test_two_ranks_are_told_what_one_is(runs, people, packs, tmp_path):
    run = tmp_path / "two"
    flags = [*map(str, flags_of("train_gan.py", people)), "--total-kimg", "0.08"]
    assert train(run, *flags, packs=packs, ranks=2) == 0, output(run)
    one = {row["nimg"]: row for row in rows(runs["train_gan.py"])}
    for row in rows(run):
        for name in ("loss_G", "loss_D", "logits_real"):
            assert row.get(name) is None or row[name] == pytest.approx(one[row["nimg"]][name], rel=2e-3, abs=1e-3)
    assert any("loss_G" in row for row in rows(run))


def test_another_table_is_refused_with_the_difference(runs, people, packs, tmp_path):
    run = shutil.copytree(runs["train_gan.py"], tmp_path / "run")
    other = tmp_path / "people.csv"
    text = (people / "people.csv").read_text()
    flags = [*flags_of("train_gan.py", people), "--table", other, "--override", "--total-kimg", 0.5]
    other.write_text(text.replace("p4,68", "p4,99"))
    outcome = run_main("train_gan.py", "--run", run, *flags, packs=packs)
    assert outcome.code == 78 and "the table is not the one" in outcome.err and "age (mean " in outcome.err
    assert "high 76.0 -> 99.0" in outcome.err and "sex" not in outcome.err.partition("began with")[2]
    swapped = [line.replace(",F", ",X").replace(",M", ",F").replace(",X", ",M") for line in text.splitlines()]
    other.write_text("\n".join(swapped) + "\n")
    outcome = run_main("train_gan.py", "--run", run, *flags, packs=packs)
    assert outcome.code == 78 and "sex (its values belong to other slices)" in outcome.err


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        ("--condition weight", 78, "--condition weight: no such column; the data have class, age, sex, slice"),
        ("--condition age,age", 78, "--condition age,age: write each column once"),
        ("--condition age,", 78, "write each column once"),
    ],
)
def test_a_condition_that_cannot_be_gets_one_line(people, packs, tmp_path, flags, code, says):
    for how in ([], ["--dry-run"]):
        words = ["--data", people, "--table", people / "people.csv", *flags.split(), *how]
        outcome = run_main("train_gan.py", "--run", tmp_path / "run", *words, packs=packs)
        assert outcome.code == code and says in outcome.err and "Traceback" not in outcome.err


def table_of(path):
    with open(path) as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("script", SCRIPTS)
def test_pictures_are_asked_for_by_column(runs, packs, tmp_path, script):
    run = runs[script]
    words = ["generate", "--run", run, "--number", 3, "--set", "age=70", "--set", "sex=M", "--out", tmp_path / "set"]
    outcome = run_predict(*words, packs=packs)
    assert outcome.code == 0 and "warning" not in outcome.said, outcome.said
    table = table_of(tmp_path / "set" / "generated.csv")
    assert table == [
        {"file": f"{i:06d}.png", "index": f"{i}", "seed": "0", "age": "70", "sex": "M", "slice": ""} for i in range(3)
    ]
    other = run_predict(*words[:-4], "--out", tmp_path / "other", packs=packs)
    assert other.code == 0
    first = (tmp_path / "set" / "000000.png").read_bytes()
    assert first != (tmp_path / "other" / "000000.png").read_bytes()
    again = load(run, device="cpu").sample(1, label={"age": 70, "sex": "M"})
    assert np.array_equal(again[0, 0], np.array(Image.open(tmp_path / "set" / "000000.png")))


def test_a_picture_for_each_row_of_a_table(runs, packs, tmp_path):
    (tmp_path / "cohort.csv").write_text("person,Age,sex,note\na,61,Female,x\nb,,M,y\nc,75.5,unknown,z\n")
    words = ["generate", "--run", runs["train_gan.py"], "--like", tmp_path / "cohort.csv", "--out", tmp_path / "out"]
    outcome = run_predict(*words, "--set", "slice=0.5", packs=packs)
    assert outcome.code == 0, outcome.said
    told = [(row["age"], row["sex"], row["slice"]) for row in table_of(tmp_path / "out" / "generated.csv")]
    assert told == [("61", "F", "0.5"), ("", "M", "0.5"), ("75.5", "", "0.5")]


def test_the_same_brain_along_columns(runs, packs, tmp_path):
    run = runs["train_gan.py"]
    words = ["generate", "--run", run, "--out", tmp_path / "out", "--number", 2, "--set", "sex=F"]
    outcome = run_predict(*words, "--vary", "age=60:78:3", packs=packs)
    assert outcome.code == 0, outcome.said
    table = table_of(tmp_path / "out" / "generated.csv")
    assert [(row["index"], row["age"], row["sex"]) for row in table] == [
        (f"{k}", age, "F") for k in (0, 1) for age in ("60", "69", "78")
    ]
    model = load(run, device="cpu")
    for row in table:
        alone = model.sample(indices=[int(row["index"])], label={"age": row["age"], "sex": "F"})
        assert np.array_equal(alone[0, 0], np.array(Image.open(tmp_path / "out" / row["file"])))
    with Image.open(tmp_path / "out" / "vary.gif") as film:
        assert film.n_frames == 4
    grid = run_predict("generate", "--run", run, "--vary", "sex", "--vary", "slice=0:1:3", "--out", tmp_path / "grid",
                       packs=packs)  # fmt: skip
    assert grid.code == 0 and len(table_of(tmp_path / "grid" / "generated.csv")) == 6
    assert not (tmp_path / "grid" / "vary.gif").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("generate --set weight=3", "weight: this model is not conditioned on it, but on age, sex, slice"),
        ("generate --set sex=X", "sex=X: none of F, M"),
        ("generate --set age=old", "age=old: write a number"),
        ("generate --set age", "--set age: write COLUMN=VALUE"),
        ("generate --class AD", "class: this model is not conditioned on it"),
        ("generate --vary age=60:80", "--vary age=60:80: write age=A:B:N"),
        ("generate --vary age=60:80:3 --set age=66", "--vary age=60:80:3: --set holds this column"),
        ("generate --vary weight=1:2:3", "this model is conditioned on age, sex, slice"),
        ("direction --from age=60 --to age=60", "--from and --to are both age=60"),
    ],
)
def test_what_cannot_be_asked_for_gets_one_line(runs, packs, tmp_path, words, says):
    command, *more = words.split()
    outcome = run_predict(command, "--run", runs["train_gan.py"], *more, "--out", tmp_path / "out", packs=packs)
    assert outcome.code == 2 and says in outcome.err and outcome.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_value_outside_of_the_training_range_is_a_guess_and_said_so(runs, packs, tmp_path):
    words = ["generate", "--run", runs["train_gan.py"], "--number", 1, "--set", "age=99.5", "--out", tmp_path]
    outcome = run_predict(*words, packs=packs)
    assert outcome.code == 0 and "age 99.5 lies outside of what the model learnt from, 60 to 76" in outcome.err


def test_guidance_of_one_column_and_what_is_not_there(runs, packs, tmp_path):
    model = load(runs["train_diffusion.py"], device="cpu")
    asked, how = {"age": 62, "sex": "F"}, dict(steps=2)
    plain = model.sample(1, label=asked, **how)
    assert np.array_equal(plain, model.sample(1, label=asked, guidance={"age": 1.0}, **how))
    assert not np.array_equal(plain, model.sample(1, label=asked, guidance={"age": 8.0}, **how))
    with pytest.raises(UsageError, match="--guidance weight: this model is conditioned on age, sex, slice"):
        model.sample(1, guidance={"weight": 2.0}, **how)


def test_truncation_pulls_to_the_mean_w_of_what_is_told(runs):
    model = load(runs["train_gan.py"], device="cpu")
    row = {"age": 62, "sex": "F", "slice": 0.5}
    values = model.labels(row, [0, 1])
    centre = model.centre(values, 0.5)
    z = model.draw_z(20200, range(512))
    by_hand = torch.stack([model.G.mapping(part[None], values[:1])[0] for part in z]).mean(0)
    assert centre.shape == (2, 1, model.G.w_dim) and torch.allclose(centre[0, 0], by_hand, atol=1e-4)
    ws, cut = (model.styles([0, 1], label=row, truncation=psi) for psi in (1.0, 0.5))
    assert torch.allclose(cut, centre + 0.5 * (ws - centre), atol=1e-5)
    other = model.centre(model.labels([row, {}], [0, 1]), 0.5)
    assert torch.allclose(other[0], centre[0]) and not torch.allclose(other[1], centre[0], atol=1e-3)


def test_direction_and_interpolate_go_along_columns(runs, packs, tmp_path):
    for script, run in runs.items():
        words = ["direction", "--run", run, "--from", "age=60,sex=F", "--to", "age=78,sex=F", "--rows", 1, "--steps", 3]
        assert run_predict(*words, "--out", tmp_path / script, packs=packs).code == 0
        about = json.loads((tmp_path / script / "direction.json").read_text())["settings"]
        assert (about["from"], about["to"]) == ("age=60,sex=F", "age=78,sex=F")
        film = [
            "interpolate",
            "--run",
            run,
            "--vary",
            "age=60:78:3",
            "--steps",
            2,
            "--out",
            tmp_path / f"film {script}",
        ]
        assert run_predict(*film, packs=packs).code == 0
        with Image.open(tmp_path / f"film {script}" / "interpolate.gif") as made:
            assert made.n_frames == 8  # 60, 69, 78, 69, and two frames from each to the next


def test_class_alone_is_conditional(packs, tmp_path):
    words = ["--run", tmp_path / "run", "--condition", "class", "--total-kimg", 0.008, "--dry-run"]
    outcome = run_main("train_gan.py", *words, packs=packs)
    config = json.loads(outcome.out)
    assert outcome.code == 0 and config["conditional"] is True and config["condition"] == ""
    assert config["data"] == "phantom:48"


def test_phantoms_become_people_where_a_column_is_asked_for(packs, tmp_path):
    outcome = run_main(
        "train_gan.py", "--run", tmp_path / "run", "--condition", "lesions,class", "--dry-run", packs=packs
    )
    config = json.loads(outcome.out)
    assert outcome.code == 0 and config["data"] == "phantom:48:people" and config["condition"] == "class,lesions"
    assert math.isfinite(config["gamma"])


def test_d_learns_to_read_real_slices_alone(monkeypatch):
    """Its loss holds what it misreads of the real half of a batch: with a reader that says 100 of these and 7 of the
    generated ones it is larger by 100."""
    import train_gan
    from jobs.config.recipe import derived
    from jobs.config.specs import GanConfig
    from jobs.training import ranks
    from models.conditions import READ_WEIGHT, Attribute

    c = GanConfig(data="phantom", resolution=32, batch=4, channel_base=64, channel_max=8, z_dim=8, w_dim=8,
                  mapping_layers=1, precision="fp32", ada="off", condition="age")  # fmt: skip
    c, rt = derived(c), ranks.Runtime(0, 1, 0, torch.device("cpu"), 1)
    told = (Attribute(0, 70.0, 10.0),)
    images, values = torch.randn(4, 1, 32, 32), torch.full((4, 1), 75.0)

    class Rows:
        def rows(self, position, start, stop):
            return images[start:stop], values[start:stop]

    losses = []
    for real in (0.0, 100.0):
        s = train_gan.build_state(c, told, rt.device)
        monkeypatch.setattr(s.D.reader, "forward", lambda shown, of, real=real: torch.tensor([7.0] * 4 + [real] * 4))
        step = train_gan.Step(c, rt, Rows(), values, torch.float32, 0, s.G.synthesis, s.D)
        train_gan.discriminator_step(s, step)
        losses.append(float(step.stats["loss_D"]))
    assert losses[1] - losses[0] == pytest.approx(100 * READ_WEIGHT, rel=1e-3)


def test_every_attribute_is_dropped_now_and_then(monkeypatch):
    import train_diffusion
    from jobs.config.specs import DiffusionConfig
    from jobs.predict.latent_space import Data
    from jobs.training import ranks
    from models import schedules
    from models.conditions import Attribute

    c = DiffusionConfig(data="phantom", space="pixel", resolution=32, batch=64, widths="8,16", head_dim=8, num_res=1,
                        attention="", precision="fp32", condition="age,sex", class_dropout=0.3)  # fmt: skip
    rt, told = ranks.Runtime(0, 1, 0, torch.device("cpu"), 1), (Attribute(0, 70.0, 10.0), Attribute(2))
    data = Data.__new__(Data)
    data.shape, data.scale = (1, 32, 32), None
    values = torch.tensor([[75.0, 1.0]]).repeat(64, 1)
    monkeypatch.setattr(Data, "rows", lambda self, position, start, stop, noise: (noise * 0, values[start:stop]))
    s = train_diffusion.build_state(c, data, told, rt.device)
    seen = []

    def network(x, t, labels):
        seen.append(labels)
        return s.unet(x, t, labels)

    train_diffusion.train_step(c, rt, s, data, schedules.make_schedule(c.schedule), network, torch.float32, 0)
    missing = torch.cat(seen).isnan().double()
    assert 0.15 < float(missing.all(1).double().mean()) < 0.6 and 0.3 < float(missing.mean()) < 0.7
    assert bool((missing.sum(1) == 1).any())


def test_the_vae_of_a_pipeline_learns_from_the_same_phantoms(tmp_path):
    words = "--local --job pipeline --preset quickstart --dry-run -- --condition age".split()
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), *words], capture_output=True, text=True, cwd=tmp_path
    )
    assert '"data": "phantom:2000:people"' in done.stdout


# --- whether it is obeyed ---------------------------------------------------------------------------------------------
def asked_of_people(number, names):
    """(rows to ask for, {column: array} of them): people of phantoms that no run has seen, healthy."""
    people = [phantom_person(7, i) | {"class": "NC"} for i in range(number)]
    known = {name: np.array([float(p[name]) for p in people]) for name in ("age", "slice")}
    return [{n: p[n] for n in names} for p in people], known | {"men": np.array([p["sex"] == "M" for p in people])}


SHORT = "--preset quickstart --data phantom:400:people --resolution 32 --condition sex,slice --metric-kimg 0".split()


@pytest.mark.parametrize(
    ("script", "flags", "how"),
    [
        ("train_gan.py", "--channel-base 512 --channel-max 32 --r1-interval 16 --total-kimg 4.8", {}),
        ("train_diffusion.py", "--space pixel --widths 16,32 --attention= --total-kimg 3", {"steps": 10}),
    ],
    ids=["gan", "diffusion"],
)
def test_a_short_run_draws_heads_of_the_size_that_it_is_told(packs, tmp_path, script, flags, how):
    """The plane decides how much of the picture is head, real slices r -.88, and so does the sex, real ones 1.23."""
    run = tmp_path / "run"
    outcome = run_main(script, "--run", run, *SHORT, *flags.split(), packs=packs, tiny=False)
    assert outcome.code == 0, outcome.said
    rows, known = asked_of_people(200, ("sex", "slice"))
    area = (load(run, device="cpu").sample(200, label=rows, **how)[:, 0] > 40).mean((1, 2))
    assert np.corrcoef(known["slice"], area)[0, 1] < -0.5
    assert area[known["men"]].mean() / area[~known["men"]].mean() > 1.05


@pytest.mark.long
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_run_draws_the_anatomy_that_it_is_told(tmp_path, script):
    """The presets as they are, on phantoms of people; StyleGAN2 three times as long, 20 minutes on one core."""
    packs, run, how = tmp_path / "packs", tmp_path / "run", {}
    words = ["--preset", "quickstart", "--condition", "class,age,sex,slice", "--run", run]
    if script == "train_gan.py":
        words += ["--data", "phantom:2000:people", "--total-kimg", 84]
    else:
        vae, words, how = tmp_path / "vae", [*words, "--vae", tmp_path / "vae"], {"steps": 10, "guidance": 2.0}
        of_vae = ["--preset", "quickstart", "--data", "phantom:2000:people", "--run", vae]
        assert run_main("pretrain_vae.py", *of_vae, packs=packs, tiny=False).code == 0
    assert run_main(script, *words, packs=packs, tiny=False).code == 0
    rows, known = asked_of_people(400, ("class", "age", "sex", "slice"))
    images = load(run, device="cpu").sample(400, label=rows, **how)[:, 0]
    read, men = PictureReader.fit().read(images), known["men"]
    seen = known["slice"] < SEEN  # where there are ventricles
    ventricles = np.array([person_truth(7, i, label=0, grid=64)["ventricles"] for i in range(400)])
    for asked, found in ((known["age"], read["age"]), (ventricles, read["ventricles"])):
        assert np.corrcoef(asked[seen], found[seen])[0, 1] > 0.8
        assert 0.7 < np.polyfit(asked[seen], found[seen], 1)[0] < 1.3
    assert (abs(read["slice"] - known["slice"]) <= 0.1).mean() > 0.9
    assert (read["head"][men][:, None] > read["head"][~men]).mean() > 0.9
    assert 0.85 < read["ventricles"][men & seen].mean() / read["ventricles"][~men & seen].mean() < 1.18


@pytest.mark.long
def test_the_reader_reads_what_is_there():
    """Real slices that it has not seen, as they are and with the grain of generated ones."""
    images = np.stack([person_slice(7, i, 64, label=0) for i in range(300)])
    _, known = asked_of_people(300, ())
    seen, grain = known["slice"] < SEEN, np.random.default_rng(0).normal(0, 15, images.shape)
    for slices in (images, np.clip(images + grain * (images > 8), 0, 255).astype(np.uint8)):
        read = PictureReader.fit().read(slices)
        assert np.corrcoef(known["age"][seen], read["age"][seen])[0, 1] > 0.9
        assert 0.85 < np.polyfit(known["age"][seen], read["age"][seen], 1)[0] < 1.1
        assert (abs(read["slice"] - known["slice"]) <= 0.1).mean() > 0.95
