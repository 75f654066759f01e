"""Networks side by side, under one protocol: trained alike where asked for, measured alike always.

``basicsr compare`` is `command`; `protocol` says what is compared, `training` trains what is missing, `measuring` takes
the figures, `cost` the parameters, products, times and memory, `report` writes what was found.
"""
