"""The task: walk through an unseen graph to a goal, where edges have to be told from noise by counting.

Prompt: records "u: v" in random order, then the goal, then the start. Every node has four recorded targets: two true
edges with three records each and two errors with one each. Answer: nodes, one token each, until the goal is written.
It is right if every step follows a true edge, one that at least two records agree on, and the goal is reached within
the cap. No step can be checked without counting records all over the prompt.

A token is a label (0 .. nodes - 1) in one of three roles: node, + ``nodes`` as source of a record, + ``2 * nodes`` as
goal. All randomness comes from the generator that is passed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from kinetics_lab.errors import require

AGREE = 2  # records that make an edge true
TEST_SEED = 20_000  # of test problems and uniform numbers; training seeds are small


@dataclass(frozen=True)
class World:
    """Size of the problems. A prompt has ``2 * sum(votes) * nodes + 2`` tokens."""

    nodes: int  # labels, and nodes of the largest graph
    sizes: tuple[int, ...]  # nodes of the test graphs
    first: int  # nodes of the smallest training graph
    cap: int  # longest answer, tokens; also the length of a training walk
    votes: tuple[int, ...] = (3, 3, 1, 1)  # records of each target of a node

    def __post_init__(self) -> None:
        graphs, least = np.array([self.first, *self.sizes]), len(self.votes) + 1
        fits = (graphs >= least) & (graphs <= self.nodes)
        require(fits, f"first and sizes must be {least} to {self.nodes} nodes", graphs)

    @property
    def degree(self) -> int:
        """True edges of a node: the targets with most records."""
        return sum(vote >= max(self.votes) for vote in self.votes)


@dataclass(frozen=True)
class Problems:
    """Prompts ``tokens [count, n_in]`` and what generated them: true ``edges [count, labels, degree]``, in labels."""

    tokens: np.ndarray
    edges: np.ndarray

    def goal(self, world: World) -> np.ndarray:
        return self.tokens[:, -2] - 2 * world.nodes


def make(world: World, count: int, nodes: int, rng: np.random.Generator) -> Problems:
    """Random problems on graphs of ``nodes`` nodes, whose labels are drawn from all of the world's."""
    rows, targets = np.arange(count)[:, None], len(world.votes)
    label = rng.random((count, world.nodes)).argsort(-1)[:, :nodes]
    near = (rng.random((count, nodes, nodes)) + 9 * np.eye(nodes)).argsort(-1)[:, :, :targets]  # no loops
    near = label[rows[:, :, None], near]  # (count, nodes, targets), in labels
    target = near.repeat(world.votes, axis=-1).reshape(count, -1)
    source = label.repeat(sum(world.votes), axis=-1) + world.nodes
    order = rng.random(target.shape).argsort(-1)
    records = np.stack([source[rows, order], target[rows, order]], -1).reshape(count, -1)
    ends = label[rows, rng.random((count, nodes)).argsort(-1)[:, :2]]  # start and goal differ
    edges = np.full((count, world.nodes, world.degree), -1)
    edges[rows, label] = near[:, :, : world.degree]
    return Problems(np.concatenate([records, ends[:, 1:] + 2 * world.nodes, ends[:, :1]], -1), edges)


def teach(
    world: World, given: Problems, steps: int, rng: np.random.Generator, explore: float = 0.8
) -> np.ndarray:
    """A teacher's walks, ``[count, steps]``: onto the goal when it is next, else with probability ``explore`` onto a
    neighbour not yet visited, else onto any. It walks on past the goal: more to learn from one prompt.
    """
    here, goal = given.tokens[:, -1], given.goal(world)[:, None]
    rows, path = np.arange(len(here)), np.empty((len(here), steps), np.int64)
    seen = np.zeros((len(here), world.nodes))
    dice = rng.random((steps, len(here), world.degree))
    avoid = rng.random((steps, len(here), 1)) < explore
    for t in range(steps):
        seen[rows, here] = 1
        near = given.edges[rows, here]
        here = near[rows, (dice[t] - 2 * (near == goal) + seen[rows[:, None], near] * avoid[t]).argmin(-1)]
        path[:, t] = here
    return path


@cache
def exam(world: World, nodes: int, count: int, seed: int, tries: int = 16) -> tuple[Problems, np.ndarray]:
    """Test problems of spread difficulty, and the mean length of the teacher's own walks on each (tokens).

    Of 40 times as many random ones, those whose teacher needs nearest to a geometric series of lengths, from the
    easiest third to the hardest hundredth or 0.6 of the cap. A quarter of its walks must arrive within the cap.
    """
    rng = np.random.default_rng([seed, nodes])
    pool = make(world, 40 * count, nodes, rng)
    again = Problems(pool.tokens[:, -2:].repeat(tries, 0), pool.edges.repeat(tries, 0))
    hit = teach(world, again, world.cap, rng) == again.goal(world)[:, None]
    steps = np.where(hit.any(1), hit.argmax(1) + 1, world.cap).reshape(-1, tries).mean(1)
    steps[hit.any(1).reshape(-1, tries).mean(1) < 0.25] = np.inf
    easiest, hardest = np.quantile(steps[np.isfinite(steps)], [1 / 3, 0.99])
    use: list[int] = []
    for target in np.geomspace(easiest, max(min(0.6 * world.cap, hardest), easiest), count):
        far = np.abs(np.log(steps / target))
        far[use] = np.inf
        use.append(int(far.argmin()))
    return Problems(pool.tokens[use], pool.edges[use]), steps[use]


def support(world: World, prompts: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """How many records agree with each step of the answers, ``[rows, cap]``: from the tokens alone.

    prompts: ``[rows, n_in]``; answers: ``[rows, cap]``, -1 after the last token. 0 where either end is no node.
    """
    rows, n, shapes = np.arange(len(prompts))[:, None], world.nodes, (prompts.shape, answers.shape)
    require(len(prompts) == len(answers), "prompts and answers must have equally many rows", shapes)
    votes = np.zeros((len(rows), n + 1, n + 1), int)  # the last label stands for everything that is no node
    np.add.at(votes, (rows, prompts[:, :-2:2] - n, prompts[:, 1:-2:2]), 1)
    walk = np.concatenate([prompts[:, -1:], np.where((answers >= 0) & (answers < n), answers, n)], 1)
    return votes[rows, walk[:, :-1], walk[:, 1:]]


def verify(world: World, prompts: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Which answers are right, bool ``[rows]``: walks from the start along edges that at least two records agree on,
    whose only visit to the goal is their end. Arguments as for :func:`support`.
    """
    true = support(world, prompts, answers) >= AGREE
    written, at_goal = answers != -1, answers == prompts[:, -2:-1] - 2 * world.nodes
    last = written.sum(1) - 1
    return (true | ~written).all(1) & (at_goal.sum(1) == 1) & at_goal[np.arange(len(last)), last]
