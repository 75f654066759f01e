"""The demonstration: a small HAT, trained for minutes on photographs that everybody has, against bicubic."""
