"""What `adafuse doctor` finds out: facts as plain values, and hints that follow from them. `doctor.py` shows them."""
