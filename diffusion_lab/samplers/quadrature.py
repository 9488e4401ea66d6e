"""Weights that integrate the polynomial through given nodes, for solvers that look back on past evaluations."""

from __future__ import annotations

from collections.abc import Sequence


def weights_for(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """The weights w with sum_j w_j nodes_j^k = moments_k for every k below the number of nodes.

    sum_j w_j f(nodes_j) is then the integral, of which the moments are those of u^k, of the polynomial through
    (nodes_j, f(nodes_j)). The system is Vandermonde's, and solved as Björck and Pereyra do (1970), which is more exact
    than a general solver, and for four nodes much faster than calling one.
    """
    w, last = list(moments[: len(nodes)]), len(nodes) - 1
    for k in range(last):
        for j in range(last, k, -1):
            w[j] -= nodes[k] * w[j - 1]
    for k in range(last - 1, -1, -1):
        for j in range(k + 1, last + 1):
            w[j] /= nodes[j] - nodes[j - k - 1]
        for j in range(k, last):
            w[j] -= w[j + 1]
    return w


def exponential_moments(z: float, count: int) -> list[float]:
    """The integrals over u from 0 to 1 of exp(-z (1 - u)) u^k, for k = 0 to count - 1.

    They are k! phi_{k+1}(-z) of exponential integrators (Hochbruck and Ostermann, 2010, eq. 2.10), written as
    1F1(1; k + 2; -z) / (k + 1), which loses no digits at small z as their recursion does.
    """
    from scipy.special import hyp1f1  # a third of a second

    return [float(hyp1f1(1, k + 2, -z)) / (k + 1) for k in range(count)]
