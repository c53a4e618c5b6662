"""Generated datasets: rows that are the same everywhere, distributed as stated, behind the url of any dataset."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import xxhash

from lexray.storage.chunk_cache import CacheSettings
from lexray.storage.errors import UserError
from lexray.storage.manifest import load_manifest
from lexray.storage.reader import open_dataset
from lexray.storage.selection import Selection, select_rows
from lexray.storage.store import Store
from lexray.storage.stream import BatchStream, local_stream
from lexray.storage.synthetic.features import STANDARD, Features, features_of, tight_frame
from lexray.storage.synthetic.rows import RowGenerator
from lexray.storage.synthetic_url import CHUNK_ROWS, PARAMETERS, Parameters, parse
from lexray.storage.verify import verify
from lexray.storage.windows import LocalWindows, StreamSpec, WindowReader, local_chunks

URL = "synthetic://synthsaebench-1k?rows=20_000&seed=3"
CHUNKS = 60


@pytest.fixture(scope="module")
def generator() -> RowGenerator:
    return RowGenerator(parse(URL))


@pytest.fixture(scope="module")
def present_NG(generator: RowGenerator) -> np.ndarray:
    """Which features fire in 61,440 rows."""
    found = np.zeros((CHUNKS * CHUNK_ROWS, generator.dataset.parameters.features), dtype=bool)
    for number in range(CHUNKS):
        firing = generator.firing(number)
        found[number * CHUNK_ROWS + firing.rows_N, firing.features_N] = True
    return found


def digest(array: np.ndarray) -> str:
    return str(xxhash.xxh3_64_hexdigest(np.ascontiguousarray(array).data.cast("B")))


# Exactness ----------------------------------------------------------------------------------------------------------


def test_rows_of_version_1_are_these_on_every_machine(generator):
    """Other digests mean that published numbers cannot be repeated: then `VERSION` has to be raised."""
    assert (generator.features.digest, digest(generator.chunk(0)), digest(generator.chunk(2**33))) == (
        "5f57c12f72f084c4",
        "6f8327da07155ba1",
        "58d46f90c431c8a0",
    )


def test_a_chunk_is_the_same_in_another_process_and_in_any_order_of_reading(generator):
    code = (
        "import sys, xxhash, torch; torch.set_num_threads(3)\n"
        "from lexray.storage.synthetic.rows import RowGenerator\n"
        "from lexray.storage.synthetic_url import parse\n"
        "g = RowGenerator(parse(sys.argv[1]))\n"
        "print(*[xxhash.xxh3_64_hexdigest(g.chunk(n).data.cast('B')) for n in (5, 2, 7)])\n"
    )
    printed = subprocess.run([sys.executable, "-c", code, URL], capture_output=True, text=True, check=True, timeout=120)
    with ThreadPoolExecutor(4) as pool:
        here = dict(zip((2, 5, 7), pool.map(lambda number: digest(generator.chunk(number)), (2, 5, 7)), strict=True))
    assert printed.stdout.split() == [here[5], here[2], here[7]]


def test_rows_are_the_exact_sums_of_their_features_so_that_no_order_of_summation_matters(generator):
    firing = generator.firing(4)
    codes_BG = np.zeros((CHUNK_ROWS, generator.dataset.parameters.features))
    codes_BG[firing.rows_N, firing.features_N] = firing.magnitudes_N
    exact_BD = codes_BG @ generator.features.directions_GD.astype(np.float64) + generator.features.bias_D
    assert np.array_equal(exact_BD, generator.vectors(firing))  # in float64: the float32 are not rounded


def test_other_seeds_give_other_rows_of_the_same_features_and_other_features(generator):
    other = RowGenerator(parse(URL.replace("seed=3", "seed=4")))
    assert other.features is generator.features
    assert not np.array_equal(other.chunk(0), generator.chunk(0))
    assert not np.array_equal(RowGenerator(generator.dataset, purpose="other").chunk(0), generator.chunk(0))
    changed = RowGenerator(parse(URL + "&features_seed=1"))
    assert changed.features.digest != generator.features.digest


def test_a_longer_dataset_begins_with_the_rows_of_a_shorter_one():
    short, long = (Store.at(URL.replace("20_000", rows)) for rows in ("1500", "9000"))
    manifests = [load_manifest(store) for store in (short, long)]
    readers = [open_dataset(store, manifest) for store, manifest in zip((short, long), manifests, strict=True)]
    assert manifests[0].id != manifests[1].id
    assert readers[0].read_chunk(1, "site").shape == (476, 96)
    assert np.array_equal(readers[0].read_chunk(1, "site"), readers[1].read_chunk(1, "site")[:476])


# Distribution -------------------------------------------------------------------------------------------------------


def within(found, expected, rows: int, sigmas: float = 5.0):
    """Whether shares of `rows` rows are as expected but for chance."""
    return np.abs(found - expected) <= sigmas * np.sqrt(np.maximum(expected, 1 / rows) / rows)


def test_probabilities_are_zipfs_between_their_bounds():
    probabilities_G = features_of(Parameters()).probabilities_G
    assert probabilities_G[[0, -1]] == pytest.approx([0.4, 5e-4])
    slope = (1 / np.sqrt(101) - 1 / np.sqrt(16384)) / (1 - 1 / np.sqrt(16384))
    assert probabilities_G[100] == pytest.approx(5e-4 + (0.4 - 5e-4) * slope)


def test_a_row_of_the_16k_form_has_the_published_34_features():
    """Documented of the released model: about 34 active features per sample."""
    firing = RowGenerator(parse("synthetic://synthsaebench-16k?rows=1024")).firing(0)
    assert 33 < len(firing.rows_N) / CHUNK_ROWS < 36


def test_roots_and_features_in_no_tree_fire_with_their_probability(generator, present_NG):
    features = generator.features
    leading = features.parents_G < 0
    rates_G = present_NG.mean(0)
    assert within(rates_G[leading], features.probabilities_G[leading], len(present_NG)).all()


def test_a_child_fires_only_where_its_parent_does_and_never_with_a_sibling(generator, present_NG):
    features = generator.features
    children = np.flatnonzero(features.parents_G >= 0)
    assert not (present_NG[:, children] & ~present_NG[:, features.parents_G[children]]).any()
    siblings = present_NG[:, children].reshape(len(present_NG), -1, 4).sum(2)
    assert siblings.max() == 1


def test_children_are_drawn_with_the_probability_that_the_tree_is_made_up_for():
    """p 0.2 and 0.1 below a parent of 0.5: 0.2 / 0.5 (1 + 0.1 / 0.5) and 0.1 / 0.5 (1 + 0.2 / 0.5)."""
    from lexray.storage.synthetic.features import drawn

    parameters = Parameters(features=3, roots=1, branching=2, depth=1)
    found = drawn(parameters, np.array([0.5, 0.2, 0.1]), np.array([-1, 0, 0]))
    assert found == pytest.approx([0.5, 0.48, 0.28])
    assert drawn(parameters, np.array([0.5, 0.45, 0.4]), np.array([-1, 0, 0])).max() == 1.0


def test_one_of_several_children_is_kept_at_random(generator, present_NG):
    """Where children are drawn alike, each is kept as often: the four of root 0, to within their different q."""
    features = generator.features
    q = features.drawn_G[features.first_child_G[0] + np.arange(4)]
    parent = present_NG[:, 0]
    kept = present_NG[parent][:, features.first_child_G[0] + np.arange(4)].mean(0)
    # Independent but for the correlation, which moves this by a few percent.
    alone = [sum_over_others(q, i) * q[i] for i in range(4)]
    assert kept == pytest.approx(alone, rel=0.15)


def sum_over_others(q: np.ndarray, own: int) -> float:
    """Mean over which others are drawn of 1 / (1 + their number)."""
    counts = np.zeros(4)
    counts[0] = 1.0
    for other in np.delete(q, own):
        counts[1:] = counts[1:] * (1 - other) + counts[:-1] * other
        counts[0] *= 1 - other
    return float((counts / np.arange(1, 5)).sum())


def test_features_fire_together_as_their_factors_say(generator, present_NG):
    """Pairs of roots: the rate at which both fire is the bivariate normal's, whose correlation is C_i . C_j."""
    from scipy.stats import multivariate_normal

    features, roots = generator.features, 8
    factor = features.argument_KG[:-1, :roots].T / 512.0  # C / sqrt(1 - |C|^2)
    factor = factor / np.sqrt(1 + (factor**2).sum(1, keepdims=True))
    pairs = [(i, j) for i in range(roots) for j in range(i)]
    both = np.array([(present_NG[:, i] & present_NG[:, j]).mean() for i, j in pairs])
    limits = [STANDARD.inv_cdf(p) for p in features.probabilities_G[:roots]]
    covariances = [[[1, factor[i] @ factor[j]], [factor[i] @ factor[j], 1]] for i, j in pairs]
    expected = np.array(
        [
            multivariate_normal(cov=covariance).cdf([limits[i], limits[j]])
            for covariance, (i, j) in zip(covariances, pairs, strict=True)
        ]
    )
    independent = np.array([features.probabilities_G[i] * features.probabilities_G[j] for i, j in pairs])
    assert within(both, expected, len(present_NG), sigmas=4).all()
    assert not within(both, independent, len(present_NG), sigmas=4).all()


def test_magnitudes_have_the_features_mean_and_spread(generator):
    firings = [generator.firing(number) for number in range(20)]
    values = np.concatenate([firing.magnitudes_N[firing.features_N == 0] for firing in firings])
    features = generator.features
    assert values.mean() == pytest.approx(features.means_G[0], abs=5 * features.spreads_G[0] / np.sqrt(len(values)))
    assert values.std() == pytest.approx(features.spreads_G[0], rel=0.05)
    assert features.means_G[[0, -1]].tolist() == [5.0, 4.0]
    assert (values > 0).all()


def test_directions_have_unit_length_and_the_least_sum_of_squared_cosines():
    found_GD = tight_frame(np.random.default_rng(0).normal(size=(200, 10)))
    assert np.linalg.norm(found_GD, axis=1) == pytest.approx(np.ones(200))
    assert ((found_GD.T @ found_GD) ** 2).sum() == pytest.approx(200**2 / 10, rel=0.01)
    features: Features = features_of(PARAMETERS["synthsaebench-1k"])
    assert np.linalg.norm(features.directions_GD, axis=1) == pytest.approx(np.ones(1024), abs=1e-3)


# As a dataset -------------------------------------------------------------------------------------------------------


def test_the_manifests_statistics_are_those_of_the_rows():
    store = Store.at(URL)
    manifest = load_manifest(store)
    reader = open_dataset(store, manifest)
    rows_ND = np.concatenate([reader.read_chunk(number, "site") for number in range(len(reader.chunks))])
    site = manifest.sites["site"]
    assert len(rows_ND) == manifest.rows == 20_000
    assert site.mean_squared_norm == pytest.approx((rows_ND.astype(np.float64) ** 2).sum(1).mean(), rel=0.03)
    distance = np.linalg.norm(rows_ND.mean(0) - np.array(site.mean))
    assert distance < 5 * np.sqrt(site.mean_squared_norm * (1 / 8192 + 1 / 20_000))
    norms = np.concatenate(reader.read_column("norm:site"))
    assert site.norm_quantiles["0.5"] == pytest.approx(float(np.median(norms)), rel=0.05)


def test_held_out_documents_are_whole_chunks_and_no_row_is_generated_to_choose_them(monkeypatch):
    store = Store.at("synthetic://synthsaebench-1k?rows=50_000_000")
    reader = open_dataset(store, load_manifest(store))
    monkeypatch.setattr(RowGenerator, "chunk", None)
    parts = {part: select_rows(reader, Selection(part=part), ["site"]) for part in ("train", "validation", "test")}
    assert sum(found.counts for found in parts.values()).sum() == 50_000_000
    counts = {int(count) for found in parts.values() for count in found.counts}
    assert counts == {0, CHUNK_ROWS, 50_000_000 % CHUNK_ROWS}
    assert parts["validation"].counts.sum() / 50_000_000 == pytest.approx(0.025, rel=0.01)


def test_a_stream_serves_these_rows_alike_to_one_reader_and_to_two():
    spec = StreamSpec(store=Store.at(URL), sites=("site",), selection=Selection(held_out=0.2))
    whole = local_stream(spec, batch_rows=256).batch(3)
    parts = [local_stream(spec, batch_rows=256, rank=rank, num_ranks=2).batch(3) for rank in range(2)]
    assert torch.equal(torch.cat([part.vectors["site"] for part in parts]), whole.vectors["site"])
    chunk, place = divmod(int(whole.row_ids[0]), CHUNK_ROWS)
    assert np.array_equal(RowGenerator(parse(URL)).chunk(chunk)[place], whole.vectors["site"][0].numpy())


def test_generated_chunks_are_not_kept_in_the_cache_on_disk(tmp_path):
    spec = StreamSpec(store=Store.at(URL), sites=("site",), selection=Selection(held_out=0.2))
    reads = local_chunks(CacheSettings(dir=str(tmp_path), bytes=10**9))
    stream = BatchStream(spec=spec, source=LocalWindows(WindowReader(spec, reads)), batch_rows=256)
    assert stream.batch(0).total_rows == 256
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# Mistakes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("synthetic://synthsaebench-2k?rows=5", "no generated dataset is called 'synthsaebench-2k'; there are"),
        ("synthetic://synthsaebench-1k", "says no number of rows; write synthetic://"),
        ("synthetic://synthsaebench-1k?rows=0", "rows '0' is no whole number from 1"),
        ("synthetic://synthsaebench-1k?rows=1e6", "rows '1e6' is no whole number from 1"),
        ("synthetic://synthsaebench-1k?rows=5&seed=-1", "seed '-1' is no whole number from 0"),
        ("synthetic://synthsaebench-1k?rows=5&rows=6", "'rows' is given 2 times"),
        ("synthetic://synthsaebench-1k?rows=5&row=6", "'row' is no parameter; there are rows, seed, features_seed"),
    ],
)
def test_a_url_that_names_no_dataset_is_refused(url, message):
    with pytest.raises(UserError, match="synthetic") as error:
        Store.at(url)
    assert message in str(error.value)


def test_one_dataset_has_one_url():
    assert Store.at("synthetic://synthsaebench-1k?rows=5_000") == Store.at(
        "synthetic://synthsaebench-1k?seed=0&rows=5000"
    )


def test_nothing_is_read_from_or_written_to_it():
    store = Store.at(URL)
    with pytest.raises(UserError, match="rows are generated where they are read; no files can be read or written"):
        verify(store)
    with pytest.raises(UserError, match=r"output: cannot write to synthetic://.*generated where they are read"):
        store.check_writable("output")
