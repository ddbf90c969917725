"""A picture of a training run in the plane, drawn by another process while training goes on.

matplotlib takes longer for a picture than training for many steps, so the training process only hands arrays to a thread
(`Dashboard.record`), which writes them to the standard input of another process (`fewstep.viz.dashboard.worker`).

    scene         what is shown
    picture       the figure, of sheet, squares and charts
    animation     the frames on disk, and the loop that is made of them
    messages      between the two processes
    process       how the other process is started
    recording     the training process's side
    worker        the other process, and the window
"""

from fewstep.viz.dashboard.recording import Dashboard
from fewstep.viz.dashboard.scene import Frame, Scene

__all__ = ["Dashboard", "Frame", "Scene"]
