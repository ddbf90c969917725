"""The dashboard: an animated picture of a training run on points in the plane, drawn by another process while training goes on.

Drawing a picture with matplotlib takes longer than many training steps. The training process therefore only hands arrays to a thread
(`Dashboard.record`), which writes them to the standard input of another process (`fewstep.viz.dashboard.worker`).

    scene         the data that the dashboard shows
    picture       the figure, made of the parts in sheet, squares and charts
    animation     the frames on disk, and the animated GIF made of them
    messages      the messages between the two processes
    process       starting the drawing process
    recording     the training process's side
    worker        the drawing process, and the process with the window
"""

from fewstep.viz.dashboard.recording import Dashboard
from fewstep.viz.dashboard.scene import Frame, Scene

__all__ = ["Dashboard", "Frame", "Scene"]
