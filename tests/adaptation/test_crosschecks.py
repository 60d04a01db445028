"""Aligners beside those of SKADA and POT, where these are right; see docs/domains.md for where they are not used."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from tlkeras.adaptation.alignment import Coral, GaussianTransport, SubspaceAlignment

skada = pytest.importorskip("skada")
transport = pytest.importorskip("ot.da")


@pytest.fixture(scope="module")
def domains():
    random = np.random.default_rng(0)
    Xs, Xt = random.normal(size=(300, 6)) @ random.normal(size=(6, 6)) + 3, random.normal(size=(200, 6)) - 1
    return Xs, Xt @ random.normal(size=(6, 6))


def adapt(adapter, Xs, Xt):
    """Return what SKADA makes of both domains, which it wants in one matrix, without the target's labels."""
    y = np.concatenate([np.arange(len(Xs)) % 2, np.full(len(Xt), -1)])
    domain = np.concatenate([np.full(len(Xs), 1), np.full(len(Xt), -2)])
    made = np.asarray(adapter.fit_transform(np.concatenate([Xs, Xt]), y, sample_domain=domain))
    return made[: len(Xs)], made[len(Xs) :]


def test_coral_is_skadas_but_for_the_targets_mean(domains):
    Xs, Xt = domains
    theirs = adapt(skada.CORALAdapter(reg=0.0), Xs, Xt)[0]  # both domains centred
    ours = Coral(shrinkage=0.0).fit(Xs, Xt).transform(Xs, "source")
    np.testing.assert_allclose(ours - Xt.mean(axis=0), theirs, atol=1e-6)


def test_subspace_alignment_is_skadas_up_to_signs_and_means(domains):
    ours = SubspaceAlignment(3, variance=1.0).fit(*domains)
    theirs = adapt(skada.SubspaceAlignmentAdapter(n_components=3), *domains)
    for name, X, other in zip(("source", "target"), domains, theirs, strict=True):
        np.testing.assert_allclose(pdist(ours.transform(X, name)), pdist(other), rtol=1e-5)


def test_gaussian_transport_is_pots(domains):
    Xs, Xt = domains
    theirs = transport.LinearTransport(reg=1e-12).fit(Xs=Xs, Xt=Xt).transform(Xs=Xs)
    ours = GaussianTransport(shrinkage=0.0).fit(Xs, Xt).transform(Xs, "source")
    np.testing.assert_allclose(ours, theirs, atol=1e-3 * np.abs(theirs).max())
