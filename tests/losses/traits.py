"""Where the paper of a method means a promise of ``test_contract`` otherwise, by the class of the loss.

- ``symmetric: False``: the peers have different parts, so permuting them does not permute the terms;
- ``crosses_peers: True``: a gradient flows from the term of one peer into another on purpose;
- ``distils_identical_peers: True``: the teacher is not one of the peers, so there is something to learn from it even
  where all peers agree;
- ``plays_a_game: True``: some of its terms have discriminators to beat, so not all of them fall together.

A loss that is not named keeps all promises.
"""

TRAITS = {
    "AFD": {"symmetric": False, "plays_a_game": True},
    "AMLN": {"symmetric": False, "plays_a_game": True},
    "CutnMixLoss": {"symmetric": False},
    "FFL": {"symmetric": False, "crosses_peers": True, "distils_identical_peers": True},
    "InfoMaxAdversarial": {"symmetric": False, "plays_a_game": True},
    "LMCL": {"symmetric": False, "crosses_peers": True, "distils_identical_peers": True},
    "MCL": {"symmetric": False, "crosses_peers": True},
    "OKDDip": {"symmetric": False, "crosses_peers": True},
    "ONE": {"symmetric": False, "crosses_peers": True},
    "PCL": {"symmetric": False, "crosses_peers": True, "distils_identical_peers": True},
    "SwitOKD": {"symmetric": False},
}


def trait(cls: type, name: str) -> bool:
    """What a loss promises, or not."""
    return TRAITS.get(cls.__name__, {}).get(name, name == "symmetric")
