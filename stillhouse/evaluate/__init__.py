"""How close a student came: distances, calibration, speed, and who it says it is."""
