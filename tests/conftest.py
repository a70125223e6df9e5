"""Under the results: what the diagnosis said of every model of the zoo, in all processes."""

from collections import Counter

COUNTS = Counter()


def pytest_runtest_logreport(report):
    if report.when == "call":
        COUNTS.update(tuple(pair) for key, pair in report.user_properties if key == "zoo")


def pytest_terminal_summary(terminalreporter):
    if COUNTS:
        from rich.console import Console
        from zoo.confusion import drawn

        console = Console(width=120, no_color=True)
        with console.capture() as text:
            console.print(drawn(COUNTS))
        terminalreporter.write_line(text.get())
