"""What the tests of the demo page share: an evaluation, and a reader of HTML."""

from html.parser import HTMLParser

from dit_sparse.quality.results import Result, Row

VIDEOS = [("a red circle", 0), ("a blue <square>", 1)]
# label, method, seconds, PSNR of the two videos
CASES = (
    ("pisa keep=0.25", "pisa", 3.0, (24.0, 26.0)),
    ("pisa keep=0.5", "pisa", 5.0, (30.0, 32.0)),
    ("draft keep=0.5", "draft", 6.0, (28.0, 29.0)),
    ("<b> draft & co", "draft", 2.0, (20.0, 21.0)),
    ("shapes--mixed", "mixed", 4.0, (33.0, 31.0)),
)


def made(times=True):
    """An evaluation as `dit-sparse eval` would have it; times: whether they were measured."""
    rows = [Row("dense", {"method": "dense"}, {"seconds": dict.fromkeys(VIDEOS, 4.5)})]
    for label, method, seconds, psnr in CASES:
        values = {"psnr": dict(zip(VIDEOS, psnr, strict=True)),
                  "seconds": dict.fromkeys(VIDEOS, seconds),
                  "density": dict.fromkeys(VIDEOS, seconds / 10)}  # fmt: skip
        keep = float(label.split("=")[1]) if "keep" in label else None
        params = {} if keep is None else {"keep": keep}
        rows.append(Row(label, {"method": method, "params": params}, values))
    if not times:
        for row in rows:
            del row.values["seconds"]
    settings = {"model": "shapes", "num_frames": 33, "num_inference_steps": 12}
    return Result(settings, {"device": "a CPU"}, VIDEOS, rows)


class Reader(HTMLParser):
    """Collects the elements of a page by tag."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def all(self, tag):
        return [attrs for name, attrs in self.found if name == tag]
