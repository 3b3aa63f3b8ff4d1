"""A bundle is plain files, equal to what was saved, and refused when it is not."""

from __future__ import annotations

import gc
import json
import pickle
import shutil
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from factory.data.preparation import Preparation
from factory.errors import InvalidData, UntrustedBundle
from factory.families.base import FitContext, Sample, Shape
from factory.search.blueprint import BLUEPRINT
from factory.search.calibration import Calibration
from factory.search.metric import Metric
from factory.search.plan import family
from factory.spec import Task
from factory.variants.assembly import Piece, joined
from factory.variants.bundle import Bundle, PyfuncVariant, _load_pyfunc
from factory.variants.contents import LIST, folder_digest, folder_size_mb
from factory.variants.manifest import MANIFEST, READABLE_FORMATS
from factory.variants.shared import SharedParts

FIXTURES = Path(__file__).parent / "fixtures"


def rows_of(frame: pd.DataFrame, first: int, last: int) -> dict[str, np.ndarray]:
    return {str(name): frame[name].to_numpy()[first:last] for name in frame.columns}


@pytest.fixture
def saved(binary, tmp_path):
    folder = tmp_path / "bundle"
    return folder, binary.bundle.save(folder)


def test_loads_what_was_saved(made, tmp_path):
    digest = made.bundle.save(tmp_path / "bundle")
    loaded = Bundle.load(tmp_path / "bundle", digest=digest)
    np.testing.assert_allclose(
        loaded.predict_raw(made.test.frame), made.bundle.predict_raw(made.test.frame), rtol=1e-6, atol=1e-9
    )
    assert loaded.columns == made.bundle.columns
    assert (loaded.task, loaded.classes, loaded.ignored) == (made.bundle.task, made.bundle.classes, made.bundle.ignored)
    assert dict(loaded.metadata) == {"seed": "0"}
    assert loaded.save(tmp_path / "again") == digest


def test_nothing_is_unpickled(saved, binary, monkeypatch):
    folder, digest = saved

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was unpickled")

    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    assert len(Bundle.load(folder, digest=digest).predict(binary.test.frame)) == len(binary.test.frame)


def test_blends_by_weight(made):
    whole = made.bundle.predict_raw(made.test.frame)
    parts = [
        member.weight * member.model.predict(made.bundle.preparations[member.preparation].transform(made.test.frame))
        for member in made.bundle.members
    ]
    np.testing.assert_allclose(whole, sum(parts))
    if made.bundle.classes:
        assert whole.shape == (len(made.test.frame), len(made.bundle.classes))
        np.testing.assert_allclose(whole.sum(axis=1), 1)


def test_one_row_of_arrays_is_predicted_as_in_a_frame(made):
    whole = made.bundle.predict_raw(made.test.frame)
    for i in range(5):
        np.testing.assert_allclose(made.bundle.predict_raw(rows_of(made.test.frame, i, i + 1))[0], whole[i], atol=1e-6)


def test_predict_names_its_columns(binary, regression):
    frame = binary.test.frame.set_index(np.arange(1000, 1000 + len(binary.test.frame)))
    answer = binary.bundle.predict(frame)
    assert list(answer.columns) == ["prediction", "probability_no", "probability_yes"]
    assert answer.index.equals(frame.index)
    assert (answer["prediction"] == np.where(answer["probability_yes"] > 0.5, "yes", "no")).all()
    assert list(regression.bundle.predict(regression.test.frame).columns) == ["prediction"]


def test_equal_preparations_run_once_and_a_bag_becomes_one_model(multiclass):
    dataset, test = multiclass.dataset, multiclass.test
    context = FitContext(task=dataset.task, n_classes=len(dataset.classes), seed=0)
    preparations = [Preparation.fit(dataset.frame, dataset.types, seed=0) for _ in range(2)]
    preparations.append(Preparation.fit(dataset.frame.iloc[:60], dataset.types, seed=0))
    lightgbm = family("lightgbm")
    shape = Shape(n_rows=len(dataset.y), n_columns=5, n_classes=3)
    parameters = lightgbm.portfolio(dataset.task, shape=shape)[0].parameters
    models = [
        lightgbm.fit(
            Sample(p.transform(dataset.frame), dataset.y),
            validation=None,
            parameters=parameters,
            context=replace(context, seed=seed, rounds=20),
        )
        for seed, p in enumerate(preparations)
    ]
    pieces = [Piece(4, "lightgbm", m, p, 2.0) for m, p in zip(models, preparations, strict=True)]
    distinct, members = joined(pieces)
    assert len(distinct) == 2
    assert [(m.preparation, pytest.approx(m.weight)) for m in members] == [(0, 2 / 3), (1, 1 / 3)]
    apart = [joined([replace(piece, bag=i)])[1][0] for i, piece in enumerate(pieces)]
    mean = np.mean([m.model.predict(p.transform(test.frame)) for m, p in zip(apart, preparations, strict=True)], axis=0)
    bundle = replace(multiclass.bundle, preparations=distinct, members=members)
    np.testing.assert_allclose(bundle.predict_raw(test.frame), mean, atol=0.02)


def test_calibration_and_threshold_travel_with_the_bundle(binary, tmp_path):
    calibration = Calibration(method="temperature", temperature=0.5, threshold=0.2)
    bundle = replace(binary.bundle, calibration=calibration)
    bundle.save(tmp_path / "bundle")
    loaded = Bundle.load(tmp_path / "bundle")
    assert loaded.calibration == calibration
    plain, raw = binary.bundle.predict_raw(binary.test.frame), loaded.predict_raw(binary.test.frame)
    odds = plain[:, 1] / plain[:, 0]
    np.testing.assert_allclose(raw[:, 1] / raw[:, 0], odds**2, rtol=1e-6)
    said = loaded.predict(binary.test.frame)["prediction"]
    assert list(said) == ["yes" if p > 0.2 else "no" for p in raw[:, 1]]
    accuracy, auc = (Metric.of(name, Task.BINARY) for name in ("accuracy", "roc_auc"))
    assert accuracy.score(binary.test.y, loaded.judged(raw, accuracy)) == pytest.approx(
        (said == np.where(binary.test.y == 1, "yes", "no")).mean()
    )
    assert loaded.judged(raw, auc) is raw


def test_no_rows_no_predictions(made):
    assert len(made.bundle.predict(made.test.frame.iloc[:0])) == 0
    assert list(made.bundle.predict(made.test.frame.iloc[:0]).columns) == list(made.bundle.output_names)


def test_digest_depends_on_names_and_contents_only(saved, tmp_path):
    folder, digest = saved
    shutil.copytree(folder, tmp_path / "copy")
    assert folder_digest(tmp_path / "copy") == digest
    (tmp_path / "copy" / "members" / "0").rename(tmp_path / "copy" / "members" / "9")
    assert folder_digest(tmp_path / "copy") != digest
    assert folder_size_mb(folder) == sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6


def test_changed_file_is_not_loaded(saved):
    folder, digest = saved
    (folder / "members" / "1" / "constant.json").write_text("[0, 1]")
    with pytest.raises(UntrustedBundle, match=r"'constant\.json' .* is not the one that was registered"):
        Bundle.load(folder, digest=digest)
    (folder / LIST).unlink()
    with pytest.raises(UntrustedBundle, match="the ledger says"):
        Bundle.load(folder, digest=digest)


@pytest.mark.parametrize("relative", ["members/0/more.bin", BLUEPRINT, "more.json"])
def test_a_file_more_is_not_loaded(saved, relative):
    folder, digest = saved
    (folder / relative).unlink(missing_ok=True)
    (folder / relative).write_text("{}")
    with pytest.raises(UntrustedBundle):
        Bundle.load(folder, digest=digest)


@pytest.mark.parametrize("text", ["", "nonsense", "9:some.file:00\n", "\xff"])
def test_a_list_that_is_not_the_bundles_is_not_looked_at(saved, text):
    folder, digest = saved
    (folder / LIST).write_text(text, encoding="latin-1")
    Bundle.load(folder, digest=digest)


def test_what_bundles_have_in_common_is_in_memory_once(saved, tmp_path):
    folder, digest = saved
    shutil.copytree(folder, tmp_path / "copy")
    shared = SharedParts()
    one, other = (Bundle.load(place, digest=digest, shared=shared) for place in (folder, tmp_path / "copy"))
    assert [a.model is b.model for a, b in zip(one.members, other.members, strict=True)] == [True] * len(one.members)
    assert [a is b for a, b in zip(one.preparations, other.preparations, strict=True)] == [True] * len(one.preparations)
    assert one.parts == other.parts
    assert 0 < sum(one.parts.values()) <= folder_size_mb(folder)
    alone = Bundle.load(folder, digest=digest)
    assert alone.members[0].model is not one.members[0].model
    model = weakref.ref(one.members[0].model)
    del one, other
    gc.collect()
    assert model() is None, "nobody holds it any longer"


class Part:
    """Something that may be held weakly."""


def test_a_part_is_loaded_once_however_many_wait_for_it():
    shared, begun, go_on = SharedParts(), threading.Event(), threading.Event()
    loads = []

    def load() -> Part:
        loads.append(1)
        begun.set()
        assert go_on.wait(10)
        return Part()

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(shared.get, "key", load, size_mb=lambda: 1.0)
        assert begun.wait(10)
        others = [pool.submit(shared.get, "key", load, size_mb=lambda: 1.0) for _ in range(3)]
        go_on.set()
        assert len({id(each.result()) for each in [first, *others]}) == 1
    assert loads == [1]


def test_a_part_that_could_not_be_loaded_is_tried_again():
    shared, part = SharedParts(), Part()

    def fail() -> Part:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        shared.get("key", fail, size_mb=lambda: 1.0)
    assert shared.get("key", lambda: part, size_mb=lambda: 1.0) is part
    assert shared.size_mb("key") == 1.0


def test_link_is_not_followed(saved, tmp_path):
    folder, digest = saved
    (tmp_path / "elsewhere").mkdir()
    (folder / "members" / "2").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UntrustedBundle, match="'members/2', which is not a plain file"):
        Bundle.load(folder, digest=digest)
    (folder / "members" / "2").unlink()
    (tmp_path / "link").symlink_to(folder)
    for other in ("nothing", "link"):
        with pytest.raises(UntrustedBundle, match="is not a folder"):
            Bundle.load(tmp_path / other, digest=digest)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 99}, "format is 99; this factory reads 1, 2"),
        ({"format_version": None}, "format is None"),
        ({"task": "poetry"}, "cannot be read"),
        ({"extra": 1}, "cannot be read"),
        ({"preparations": 1}, "a preparation that the bundle does not have"),
        ({"preparations": 3}, "lacks its folder 'preparations/2'"),
    ],
)
def test_manifest_is_checked(saved, changes, message):
    folder, _ = saved
    document = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**document, **changes}))
    with pytest.raises(UntrustedBundle, match=message):
        Bundle.load(folder)


@pytest.mark.parametrize(
    "field", [{"folder": "../../elsewhere"}, {"folder": "/etc"}, {"weight": 0.1}, {"folder": "members/7"}]
)
def test_member_outside_the_bundle_is_refused(saved, field):
    folder, _ = saved
    document = json.loads((folder / MANIFEST).read_text())
    document["members"][0] |= field
    (folder / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(UntrustedBundle):
        Bundle.load(folder)


@pytest.mark.parametrize("format_version", sorted(READABLE_FORMATS))
def test_bundle_of_every_released_format_is_read(format_version):
    folder = FIXTURES / f"bundle_format_{format_version}"
    expected = json.loads((FIXTURES / f"bundle_format_{format_version}.json").read_text())
    loaded = Bundle.load(folder, digest=expected["digest"])
    rows = pd.DataFrame(expected["rows"])
    assert loaded.check_input(rows) == []
    np.testing.assert_allclose(loaded.predict_raw(rows), expected["predictions"], rtol=1e-5)


# --- as MLflow calls it --------------------------------------------------------------


@pytest.fixture
def pyfunc(saved) -> PyfuncVariant:
    return _load_pyfunc(str(saved[0]))


def test_pyfunc_takes_what_mlflow_hands_over(pyfunc, binary):
    frame = binary.test.frame.head(3)
    expected = binary.bundle.predict(frame)
    records = frame.to_dict(orient="records")
    for given in (frame, records, frame.to_dict(orient="list"), frame.to_numpy(), frame.to_numpy().tolist()):
        pd.testing.assert_frame_equal(pyfunc.predict(given), expected, rtol=1e-6)
    pd.testing.assert_frame_equal(pyfunc.predict(records[0], params={}), expected.head(1), rtol=1e-6)


def test_pyfunc_names_every_problem(pyfunc, binary):
    frame = binary.test.frame.head(2).drop(columns="income").assign(age=["young", 30], colour="red")
    with pytest.raises(InvalidData) as caught:
        pyfunc.predict(frame)
    assert {detail.field for detail in caught.value.details} == {"income", "age", "colour"}
    with pytest.raises(InvalidData, match="3 columns without names; the model has 5"):
        pyfunc.predict(np.zeros((2, 3)))
