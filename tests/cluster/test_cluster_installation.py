"""From nothing to a cluster that works, by the commands of docs/operations.md as they are written."""

from tests.cluster.installation import Installation


def test_helms_own_test(place: Installation):
    (command,) = [line for line in place.document("4. Chart").splitlines() if line.startswith("helm test")]
    told = place.bash(command)
    assert "Phase:          Succeeded" in told


def test_it_is_ready_in_the_stated_time(place: Installation):
    """With the image on the node. The document says 30 to 40 s, of a machine that does nothing else: on one that is
    busy it may be three times as much."""
    print(f"ready in {place.seconds:.0f} s")
    assert place.seconds < 120


def test_doctor_finds_nothing_wrong(place: Installation):
    told = place.doctor()
    assert told.returncode == 0, told.stdout + told.stderr
    lines = told.stdout.splitlines()
    assert len(lines) > 8
    assert not [line for line in lines if not line.startswith(("ok ", "-  "))], lines
