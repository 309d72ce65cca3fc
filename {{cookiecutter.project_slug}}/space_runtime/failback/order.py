"""The order in which rows can be inserted: those that are referred to before those that refer."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TypeVar

Node = TypeVar("Node", bound=Hashable)


def parents_first(parents: Mapping[Node, Sequence[Node]]) -> Iterator[list[Node]]:
    """Yield groups of nodes, each after all groups that its nodes refer to.

    A group has one node, or several that refer to each other in a circle. These are the strongly
    connected components of the graph, in the order in which Tarjan's algorithm completes them
    (https://en.wikipedia.org/wiki/Tarjan's_strongly_connected_components_algorithm). It keeps a
    stack of its own, because a chain of replies may be longer than Python's recursion limit.
    """
    index: dict[Node, int] = {}
    lowest: dict[Node, int] = {}
    open_nodes: dict[Node, None] = {}
    for start in parents:
        if start in index:
            continue
        visits = [(start, iter(parents[start]))]
        index[start] = lowest[start] = len(index)
        open_nodes[start] = None
        while visits:
            node, remaining = visits[-1]
            for parent in remaining:
                if parent not in index:
                    index[parent] = lowest[parent] = len(index)
                    open_nodes[parent] = None
                    visits.append((parent, iter(parents[parent])))
                    break
                if parent in open_nodes:
                    lowest[node] = min(lowest[node], index[parent])
            else:
                visits.pop()
                if visits:
                    child = visits[-1][0]
                    lowest[child] = min(lowest[child], lowest[node])
                if lowest[node] == index[node]:
                    group: list[Node] = []
                    while not group or group[-1] != node:
                        group.append(open_nodes.popitem()[0])
                    yield group[::-1]
