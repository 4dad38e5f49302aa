"""From generator and teacher to student: selection, tuning, distillation."""
