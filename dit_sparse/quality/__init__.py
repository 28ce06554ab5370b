"""How good sparse attention is: inside the layers, on the videos, and with what certainty."""
