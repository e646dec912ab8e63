"""A data set is prepared into a bucket as onto a disk; test_sweep.py trains with it."""


def test_the_files_in_a_bucket_are_those_on_a_disk(
    programs, faulty_bucket, images, prepared, tmp_path
):
    command = ("-m", "copymit.data.prepare", "folder", images)
    # The second call finds everything done.
    programs.run(*command, f"--output={prepared}", **faulty_bucket.environment)
    programs.run(*command, f"--output={tmp_path}/prepared")
    in_bucket = {
        path.removeprefix(f"{prepared}/"): faulty_bucket.read(path)
        for path in faulty_bucket.list(prepared)
    }
    on_disk = {
        path.name: path.read_bytes() for path in (tmp_path / "prepared").iterdir()
    }
    assert in_bucket == on_disk
    assert len(on_disk) >= 5
