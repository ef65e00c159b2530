"""Graphs of files: how the same graph may be written, and what could be read as two."""

import networkx as nx
import numpy as np
import pytest

from ccl_jax import graphs

RING6 = [(0, 1), (0, 5), (1, 2), (2, 3), (3, 4), (4, 5)]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf0 1\n0 2\n1 3\n",  # with a byte-order mark
        b"0\t1\r\n0\t2\r\n1\t3",  # tabs, and the line ends of Windows
        b"1 0\n0 1\n0 1\n0 2 {}\n2 2\n3 1 # twice, both ways, a self-loop\n",
        b"0 1 2\n1 3\n2\n3\n",
        b"0 1 2\n1 0 3\n2 0\n3 1\n",
        b"000 1\n0 2\n1 " + b"0" * 5000 + b"3\n",
    ],
)
def test_ways_to_write_a_tree_of_four(tmp_path, content):
    (tmp_path / "g").write_bytes(content)
    adjacency = graphs.make(f"file:{tmp_path}/g", 4).adjacency[0]
    assert adjacency.tolist() == [[0, 1, 1, 0], [1, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0]]


@pytest.mark.parametrize("weight", [0, 1, 2, 5, 7, 2.5])
def test_weights_are_not_taken_for_neighbours(tmp_path, weight):
    ring = nx.Graph(RING6)
    nx.set_edge_attributes(ring, weight, "weight")
    nx.write_weighted_edgelist(ring, tmp_path / "ring.txt")
    for kind in ("file", "directed-file"):
        with pytest.raises(ValueError, match=r"ring\.txt, line \d: "):
            graphs.make(f"{kind}:{tmp_path}/ring.txt", 6)


@pytest.mark.parametrize(
    "content",
    [
        "0 1 3\n1 2 3\n2 3 1\n",  # a chain with the weights 3, 3 and 1
        "0 1 2\n1 2 3\n2 3 0\n3 0 1\n",  # a ring, or all that are one or two further on
        "0 1 3\n1 0 2\n1 2 0\n2 1 3\n2 3 1\n3 2 0\n",  # a chain, each edge both ways
        "0 1 2 3\n1 2 3 0\n2 3 0 1\n",  # weight and time
    ],
)
def test_what_may_be_weights_is_refused(tmp_path, content):
    (tmp_path / "g").write_text(content)
    numbers = len(content.split("\n")[0].split())
    with pytest.raises(
        ValueError, match=f"g, line 1: all lines have {numbers} numbers.*neighbours or"
    ):
        graphs.make(f"file:{tmp_path}/g", 4)


def test_lines_of_one_length_that_can_be_no_weights(tmp_path):
    path = tmp_path / "g"
    # Everyone with both neighbours on a ring: each is listed by those it lists.
    path.write_text("".join(f"{i} {(i - 1) % 6} {(i + 1) % 6}\n" for i in range(6)))
    wanted = graphs.make("ring", 6).adjacency
    np.testing.assert_array_equal(graphs.make(f"file:{path}", 6).adjacency, wanted)
    # An edge with the weight 2 would leave out agent 2.
    path.write_text("0 1 2\n")
    wanted = graphs.make("star", 3).adjacency
    np.testing.assert_array_equal(graphs.make(f"file:{path}", 3).adjacency, wanted)


def test_a_plus_sign_in_the_path_of_a_file(tmp_path):
    path = tmp_path / "a+b.txt"
    path.write_text("0 1\n1 2\n")
    parts = [graphs.make(name, 3).weights for name in (f"file:{path}", "ring", f"file:{path}")]
    graph = graphs.make(f"alternating:file:{path}+ring+file:{path}", 3)
    np.testing.assert_array_equal(graph.weights, np.concatenate(parts))
    (tmp_path / "c+ring").write_text("0 1\n1 2\n")  # taken for two: by keyword it is one
    graph = graphs.make("alternating", 3, graphs=[f"file:{tmp_path}/c+ring", "ring"])
    np.testing.assert_array_equal(graph.weights, np.concatenate(parts[:2]))


def test_a_file_below_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "g").write_text("0 1\n")
    assert graphs.make("file:~/g", 2).adjacency[0].tolist() == [[0, 1], [1, 0]]
