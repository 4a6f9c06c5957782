# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
`python -m ddim_scheduler.app [folder or Hub id]`: shows a page in the browser, or writes a Space that shows it.

The page is on this machine alone, unless it is shared.
"""

import argparse
import threading
from pathlib import Path

from .. import EtaDDIMPipeline
from ..command_line import add_device, import_extra, run
from .samplers import Model
from .space import export_space


def port(text: str) -> int:
    """The number of a port, in 1..65535."""
    number = int(text)
    if not 0 < number < 65536:
        raise argparse.ArgumentTypeError(f"must be in 1..65535, but is {number}")
    return number


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="python -m ddim_scheduler.app",
        description="Sample, compare, interpolate, invert and edit with a model, on a page in the browser.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("model", help="folder or Hub id of an EtaDDIMPipeline")
    parser.add_argument(
        "--share", choices=("no", "yes"), default="no", help="yes: a public link, through Gradio's servers"
    )
    parser.add_argument("--port", type=port, help="port of the page; if not given, the first free one from 7860 on")
    add_device(parser, "where to compute")
    parser.add_argument("--export-space", type=Path, metavar="DIR", help="write a Space into a new folder and end")
    args = parser.parse_args(argv)
    import_extra("gradio", "app")
    from .page import build_page  # imports Gradio

    model = Model(EtaDDIMPipeline.from_pretrained(args.model).to(args.device), args.model)
    if args.export_space is not None:
        export_space(args.model, args.export_space)
        print(f"The Space is in {args.export_space}: try it by `python app.py` there, push it as it is.")
        return
    page = build_page(model)
    page.launch(
        share=args.share == "yes", server_port=args.port, show_error=True, footer_links=[], prevent_thread_lock=True
    )
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print("The page is closed.")
    finally:
        model.runs.stop_all()  # first: closing waits for what is under way
        page.close()


if __name__ == "__main__":
    run(main)
