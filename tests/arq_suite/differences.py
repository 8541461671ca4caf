"""Where our Worker differs from arq's: those of arq's tests that fail with it, each with the promise that it breaks."""

UNKNOWN = "Nothing is deleted that could not be run: a job whose function is unknown waits for a worker that knows it."
UNREADABLE = "Nothing is deleted that could not be run: a message that can't be read is kept as it is."

DIFFERENCES = {
    "tests/test_worker.py::test_job_job_not_found": UNKNOWN,
    "tests/test_worker.py::test_job_job_not_found_run_check": UNKNOWN,
    "tests/test_worker.py::test_deserialization_error": UNREADABLE,
    "tests/test_worker.py::test_incompatible_serializers_1": UNREADABLE,
    "tests/test_worker.py::test_incompatible_serializers_2": UNREADABLE,
}
