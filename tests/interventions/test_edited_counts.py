"""What conditions edit, by hand: sets with one kind missing, factors of 1, and equal edits."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from neuronllm_eval.interventions import conditions
from neuronllm_eval.interventions.conditions import (
    CONDITIONS,
    Edited,
    Scales,
    condition_scales,
    edited_by,
)
from tests.fixtures.harness import neuron_set

PLAIN = CONDITIONS[1:]


def distinct(edited: dict[str, Edited]) -> list[str]:
    """Those that edit something, each of several that do the same once."""
    return [name for name, own in edited.items() if own.n_neurons and own.same_as is None]


def test_both_kinds_are_edited_by_degrade_and_enhance():
    found = edited_by(CONDITIONS, neuron_set(), Scales())
    assert list(found) == list(PLAIN)
    assert found["suppress_good"] == Edited(4, 0)
    assert found["enhance_bad"] == Edited(0, 4)
    assert found["degrade"] == found["enhance"] == Edited(4, 4)
    assert found["degrade"].n_neurons == 8
    assert distinct(found) == list(PLAIN)


def test_without_bad_neurons_there_are_two_conditions():
    names = ("degrade", "suppress_bad", "suppress_good", "enhance", "enhance_good")
    found = edited_by(names, neuron_set(bad=()), Scales())
    assert list(found) == list(names)
    assert found["suppress_bad"] == Edited(0, 0, None, "no bad neurons")
    assert found["degrade"] == Edited(4, 0, "suppress_good", "good only")
    assert found["enhance"] == Edited(4, 0, "enhance_good", "good only")
    assert distinct(found) == ["suppress_good", "enhance_good"]
    alone = edited_by(["degrade"], neuron_set(good=()), Scales())
    assert alone == {"degrade": Edited(0, 4, None, "bad only")}


def test_a_factor_of_1_edits_nothing():
    found = edited_by(PLAIN, neuron_set(), Scales(enhance=1))
    assert found["enhance_good"] == Edited(0, 0, None, "factor 1")
    assert found["degrade"] == Edited(4, 0, "suppress_good", "good only")
    assert edited_by(["degrade"], neuron_set(), Scales(1, 1))["degrade"].note == "factor 1"


def test_points_that_reach_all_there_are_do_the_same():
    few = neuron_set(bad=((0, 3), (1, 4)))
    names = ("suppress_bad", "suppress_bad.k1.x0", "suppress_bad.k3.x0", "suppress_bad.k2.x0.5",
             "suppress_bad.random_0")  # fmt: skip
    found = edited_by(names, few, Scales())
    assert list(found) == list(names[:-1])
    assert [each.n_bad for each in found.values()] == [2, 1, 2, 2]
    assert found["suppress_bad.k3.x0"].same_as == "suppress_bad"
    assert found["suppress_bad.k2.x0.5"].same_as is None


places = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), unique=True, max_size=6)


@given(places, st.integers(0, 6), st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.sampled_from([1.0, 2]))
def test_it_is_what_the_factors_say(chosen, cut, suppress, enhance):
    cut = min(cut, len(chosen))
    if not chosen:
        return
    neurons = neuron_set(chosen[:cut], chosen[cut:], n_layers=2, width=6)
    scales = Scales(suppress, enhance)
    found = edited_by(PLAIN, neurons, scales)
    factors = {name: condition_scales(neurons, name, scales) for name in PLAIN}
    for name, each in found.items():
        assert each.n_neurons == np.count_nonzero(factors[name] != 1)
        if each.same_as is not None:
            assert np.array_equal(factors[name], factors[each.same_as])
    kept = distinct(found)
    assert len({factors[name].tobytes() for name in kept}) == len(kept)
    assert len(kept) == len({f.tobytes() for f in factors.values() if (f != 1).any()})


def test_a_row_in_each_table_is_a_new_condition(monkeypatch):
    halve = conditions.Operation(0.5, "halving", -1)
    monkeypatch.setitem(conditions.OPERATIONS, "halve", halve)
    monkeypatch.setitem(conditions.CONDITION_OPERATIONS, "halve_good", ("halve", None))
    chosen = neuron_set()
    factors = condition_scales(chosen, "halve_good", Scales(7, 8))
    assert {float(factors[neuron.location]) for neuron in chosen.good} == {0.5}
    assert (factors != 1).sum() == len(chosen.good)
    few = condition_scales(chosen, "halve_good.k1")  # its factor is fixed, and no name has it
    assert (few == 0.5).sum() == 1
    assert (condition_scales(chosen, "halve_good.random_3") == 0.5).sum() == len(chosen.good)
    assert edited_by(["halve_good"], chosen, Scales()) == {"halve_good": Edited(4, 0)}
