"""The colours of all pictures: those of Okabe and Ito, which people with red-green colour blindness can tell apart, grey and violet."""

BLUE, ORANGE, GREEN, PINK, SKY, RED, GREY, VIOLET = COLOURS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#7f7f7f",
    "#4b0082",
)
SAMPLE = "#d1400f"  # the colour of generated points
