"""The explorer without a browser: what Python reads is what was computed, and the newest wish wins."""

import asyncio
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn
from traitlets import TraitError

import ess_widgets as ew

TEXT = "<|endoftext|>Giraffes are tall.<|endoftext|>She collects typewriters from the 1940s."


@pytest.fixture
def explored(smollm2):
    explorer = ew.explore(*smollm2, TEXT, kind="tolerance", tol=1e-2)
    explorer.wait()
    yield explorer
    explorer.close()


def floats(data, key, *shape):
    return np.frombuffer(data[key], "<f4").reshape(shape)


def test_the_profile_is_the_ess_of_the_captured_layer(smollm2, explored):
    model, tokenizer = smollm2
    captured = ew.capture(model, tokenizer(TEXT, return_tensors="pt")["input_ids"])
    for layer in (0, 15, 29):
        explored.selection.layer = layer
        explored.wait()
        operator = captured[explored.selection.layer].operator[0]
        for kind, tol, relative in [
            ("tolerance", 1e-2, False),
            ("tolerance", 1e-3, True),
            ("entropy", 1e-3, False),
        ]:
            explored.kind, explored.tol, explored.relative = kind, tol, relative
            explored.wait()
            expected = ew.ess(operator, kind=kind, tol=tol, relative=relative).numpy()
            np.testing.assert_allclose(explored.profile, expected, rtol=1e-9)
            sent = floats(explored.profile_data, "ess", *expected.shape)
            np.testing.assert_allclose(sent, expected, rtol=1e-6)
            assert explored.profile_data["kind"] == kind


def test_what_the_browser_gets_is_of_the_selected_head(explored):
    explored.selection = {"layer": 7, "head": 4}
    explored.wait()
    layer = explored.selection.layer
    length = len(explored.tokens["labels"])
    for data in (explored.operator_data, explored.spectrum_data):
        assert (data["layer"], data["head"], data["length"]) == (layer, 4, length)
    T = torch.from_numpy(floats(explored.operator_data, "matrix", length, length).copy())
    sigma = floats(explored.spectrum_data, "values", length, length // 2)
    np.testing.assert_allclose(sigma, ew.spectrum(T.double()).numpy(), atol=1e-6)
    np.testing.assert_allclose(T.sum(-1), 1, rtol=1e-5)


def test_the_grid_holds_the_mean_of_every_head(explored):
    grid = explored.grid_data
    values = floats(grid, "ess", grid["rows"], grid["columns"])
    assert (grid["rows"], grid["columns"]) == (30, 9)
    assert not np.isnan(values).any() and floats(grid, "fresh", 30, 9).all()
    for row in (0, 12, 29):
        explored.selection.layer = row
        explored.wait()
        np.testing.assert_allclose(values[row], explored.profile.mean(-1), rtol=1e-6)
    worst = [layer["residual"] for layer in explored.layers]
    assert max(worst) <= explored.layers[0]["limit"] == 1e-5


def test_editing_the_text_changes_everything(explored, smollm2):
    before = explored.grid_data
    explored.text = "One two three."
    explored.wait()
    assert explored.tokens["labels"] == ["One", " two", " three", "."]
    assert explored.profile.shape == (9, 4) and explored.operator_data["length"] == 4
    assert explored.grid_data != before and explored.status["phase"] == "ready"
    assert 0 <= explored.selection.position < 4


def test_the_newest_edit_wins(explored):
    seen = []
    explored.observe(lambda change: seen.append(len(change.new["labels"])), "tokens")
    for count in range(1, 30):
        explored.text = "word " * count
    explored.wait()
    assert explored.tokens["labels"][0] == "word"
    final = len(explored.tokens["labels"])
    assert seen[-1] == final and final >= 29
    assert len(seen) < 15, "superseded edits were run to their end"
    assert seen == sorted(seen), "an old result came after a newer one"


def test_a_bad_text_says_why_and_the_last_good_result_stays(explored):
    profile = explored.profile.copy()
    for text, message in [("", "empty"), ("word " * 3000, "at most|limit")]:
        explored.text = text
        with pytest.raises(ValueError, match=message):
            explored.wait()
        assert explored.status["phase"] == "error"
        np.testing.assert_array_equal(explored.profile, profile)
    explored.selection.head = 3
    with pytest.raises(ValueError):
        explored.wait()
    assert explored.operator_data["head"] == 3, "the last good result can still be explored"
    assert explored.status["phase"] == "error"
    explored.text = TEXT
    explored.wait()
    assert explored.status["phase"] == "ready"


def test_python_hears_of_the_selection_from_the_explorer_and_from_itself(explored):
    heard = []
    explored.observe(lambda change: heard.append(change.new.position), "selection")
    explored.selection.observe(lambda change: heard.append(change.new), "position")
    explored.selection.position = 6
    assert heard == [6, 6]
    with pytest.raises(TraitError, match="outside the sequence"):
        explored.selection.position = 10_000
    with pytest.raises(TraitError, match="no layer is called"):
        explored.selection.layer = "model.layers.99"


def test_a_message_of_the_browser_is_answered_with_vectors(explored):
    answers = []
    explored.send = lambda content, buffers: answers.append((content, buffers))
    layer = explored.selection.layer
    explored._handle_custom_msg({"type": "vectors", "layer": layer, "head": 0, "position": 5}, [])
    explored.wait()
    (content, (past, future)), length = answers[0], len(explored.tokens["labels"])
    assert content["count"] == 5 and len(past) == 5 * 5 * 4 and len(future) == 5 * (length - 5) * 4
    for bad in ({"layer": "x"}, {"position": 0}, {"position": 10**6}, {"head": "0"}, {"position": None}):
        explored._handle_custom_msg({"type": "vectors", "layer": layer, "head": 0, "position": 5, **bad}, [])
        explored.wait()
    assert len(answers) == 1


def test_where_a_loop_runs_wait_is_awaited(explored):
    async def edit():
        explored.text = "Awaited."
        await explored.wait()
        explored.text = ""
        with pytest.raises(ValueError, match="empty"):
            await explored.wait()

    asyncio.run(edit())
    assert explored.profile.shape[1] == len(explored.tokens["labels"])
    assert "".join(explored.tokens["labels"]) == "Awaited."


def test_two_explorers_share_a_model(smollm2, explored):
    other = ew.explore(*smollm2, "Another text for the same model.")
    explored.text = "While the other one runs."
    other.wait()
    explored.wait()
    assert other.tokens["labels"][0] == "Another" and explored.tokens["labels"][0] == "While"
    for explorer in (other, explored):
        assert explorer.profile.shape[1] == len(explorer.tokens["labels"])
    other.close()


class Tiny(nn.Module):
    """A module of the user's own, with dropout and batch norm."""

    def __init__(self, width=16, heads=2):
        super().__init__()
        self.embed = nn.Embedding(256, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.norm = nn.BatchNorm1d(width)
        self.drop = nn.Dropout(0.3)
        self.out = nn.Linear(width, 256)
        self.heads = heads

    def forward(self, ids):
        x = self.drop(self.norm(self.embed(ids).mT).mT)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(self.drop(y.transpose(1, 2).flatten(-2)))


class Bytes:
    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(ids).decode(errors="replace")


def losses(model, steps, during=None):
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    history = []
    for step in range(steps):
        if during is not None:
            during(step)
        ids = torch.randint(256, (4, 24))
        loss = nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.roll(-1, 1).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return history


def test_exploring_a_model_that_trains_changes_nothing():
    def fresh():
        torch.manual_seed(0)
        return Tiny()

    alone = losses(fresh(), 200)
    model = fresh()
    explorer = ew.explore(model, Bytes(), "text 0")
    runs = []
    explorer.observe(lambda change: runs.append(change.new), "tokens")

    def edit(step):
        if step % 10 == 0:
            explorer.text = f"text {step} " * 5

    together = losses(model, 200, edit)
    explorer.wait()
    explorer.close()
    assert together == alone, "bitwise"
    assert model.training and not model._forward_pre_hooks and len(runs) >= 1


def test_edits_from_a_thread_beside_the_training_change_nothing():
    def fresh():
        torch.manual_seed(0)
        return Tiny()

    alone = losses(fresh(), 100)
    model = fresh()
    explorer = ew.explore(model, Bytes(), "text 0")
    stop = threading.Event()

    def type_on():
        count = 0
        while not stop.wait(0.01):
            count += 1
            explorer.text = f"text {count} " * 5

    typist = threading.Thread(target=type_on)
    typist.start()
    together = losses(model, 100)
    stop.set()
    typist.join()
    explorer.wait()
    explorer.close()
    assert together == alone, "bitwise"


def test_a_layer_and_a_tensor_without_tokens():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    x = torch.randn(2, 6, 8)

    class Causal(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
            return self.layer(x, mask, is_causal=True)

    explorer = ew.explore(Causal(), x, names=list("abcdef"), sample=1)
    explorer.wait()
    assert explorer.text is None and explorer.tokens["labels"] == list("abcdef")
    assert not explorer.tokens["indexed"] and explorer.profile.shape == (2, 6)
    expected = ew.ess(ew.capture(Causal(), x)["layer.self_attn"].operator[1])
    # The operator is float32, and its last digit depends on how many heads one product computes.
    np.testing.assert_allclose(explorer.profile, expected.numpy(), rtol=1e-6)
    with pytest.raises(TraitError, match="no tokenizer"):
        explorer.text = "text"
    explorer.inputs = torch.randn(2, 4, 8).numpy()
    explorer.wait()
    assert explorer.profile.shape == (2, 4)
    explorer.close()


def test_a_model_that_raises_or_has_nothing_to_show_says_so():
    explorer = ew.explore(nn.Linear(3, 3), torch.randn(2, 3))
    with pytest.raises(Exception, match=r"(?i)nothing|no "):
        explorer.wait()
    assert explorer.status["phase"] == "error" and explorer.profile.size == 0
    explorer.close()
    explorer = ew.explore(Tiny(), torch.tensor([[999]]))
    with pytest.raises(IndexError):
        explorer.wait()
    assert "IndexError" in explorer.status["message"]
    explorer.close()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("model", None), {}, "torch.nn.Module"),
        ((Tiny(), None), {}, "tokenizer"),
        ((Tiny(), torch.zeros(1, 2), "text"), {}, "needs a tokenizer"),
        ((Tiny(), Bytes(), "text"), {"colour": "red"}, "no option 'colour'"),
        ((Tiny(), Bytes(), "text"), {"kind": "rank"}, "entropy"),
        ((Tiny(), Bytes(), "text"), {"tol": 0}, "above 0"),
        ((Tiny(), Bytes(), "text"), {"tol": float("nan")}, "above 0"),
    ],
)
def test_wrong_arguments_are_explained(arguments, options, message):
    with pytest.raises((TypeError, TraitError), match=message):
        ew.explore(*arguments, **options)


class Slow(Tiny):
    """Takes about two seconds, in small steps, as a deep model does."""

    def forward(self, ids):
        for _ in range(200):
            time.sleep(0.01)
            torch.ones(2) + 1
        return super().forward(ids)


def test_a_superseded_run_stops_at_once():
    explorer = ew.explore(Slow(), Bytes(), "first")
    started = []
    explorer.observe(lambda change: started.append(time.perf_counter()), "status")
    time.sleep(0.3)
    edited = time.perf_counter()
    explorer.text = ""  # fails at once when its turn comes: its turn is when the first run has stopped
    with pytest.raises(ValueError, match="empty"):
        explorer.wait()
    assert started[-1] - edited < 1.0, "the first run went on to its end, 1.7 s later"
    explorer.close()


def test_single_views_link_through_one_selection():
    T = torch.rand(3, 8, 8).tril()
    shared = ew.Selection(position=5)
    views = [
        ew.OperatorView(T, selection=shared),
        ew.ProfileView(T, kind="tolerance", tol=0.5, selection=shared),
        ew.SpectrumView(T, selection=shared),
    ]
    assert all(view.selection is shared for view in views)
    shared.head = 2
    assert views[0].operator_data["head"] == views[2].spectrum_data["head"] == 2
    np.testing.assert_array_equal(floats(views[0].operator_data, "matrix", 8, 8), T[2].numpy())
    np.testing.assert_array_equal(views[1].profile, ew.ess(T, kind="tolerance", tol=0.5).numpy())
    views[1].kind = "entropy"
    np.testing.assert_allclose(floats(views[1].profile_data, "ess", 3, 8), ew.ess(T).numpy(), rtol=1e-6)
    with pytest.raises(ValueError, match="choose a sample"):
        ew.OperatorView(T[None])
    with pytest.raises(ValueError, match="2 labels for 8"):
        ew.OperatorView(T, labels=["a", "b"])
    with pytest.raises(ValueError, match="2 marks for 3"):
        ew.TokenView(["a", "b", "c"], [0, 1])


def test_the_layer_grid_alone(smollm2):
    model, tokenizer = smollm2
    captured = ew.capture(model, tokenizer("A short text.", return_tensors="pt")["input_ids"])
    view = ew.LayerGridView(captured, kind="tolerance", tol=1e-2)
    values = floats(view.grid_data, "ess", 30, 9)
    expected = ew.ess(captured[4].operator[0], kind="tolerance", tol=1e-2).mean(-1).numpy()
    np.testing.assert_allclose(values[4], expected, rtol=1e-6)


def test_a_long_input_is_drawn_before_all_its_singular_values_are_known():
    torch.manual_seed(0)
    length = 400
    layer = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.randn(1, length, 8)
    inputs = {"query": x, "key": x, "value": x, "attn_mask": torch.ones(length, length).triu(1).bool()}
    explorer = ew.Explorer(layer, inputs=inputs, kind="tolerance", tol=1e-3)
    sent = []
    explorer.observe(
        lambda change: sent.append((change.name, change.new)), ["spectrum_data", "operator_data"]
    )
    explorer.wait()
    (captured,) = explorer.captured.values()
    expected = ew.ess(captured.operator[0], "tolerance", 1e-3)
    np.testing.assert_array_equal(explorer.profile, expected.numpy())
    explorer.close()
    names = [name for name, data in sent if data]
    assert names[0] == "operator_data"
    spectra = [
        floats(data, "values", length, length // 2) for name, data in sent if name == "spectrum_data" and data
    ]
    first, last = spectra[0], spectra[-1]
    known = ~np.isnan(first).any(-1)
    # About the brushed position, half way, and not yet everywhere.
    assert known[length // 2] and not known[0] and not known.all()
    assert not np.isnan(last).any()
    np.testing.assert_array_equal(first[known], last[known])
