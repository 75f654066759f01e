"""Networks side by side, under one protocol: trained alike where asked for, measured alike always.

``basicsr compare`` is `command`; `reading` reads what is compared, `protocol` says on what terms, `training` trains
what is missing, `measuring` takes the figures, `cost` parameters, products, times and memory, `report` writes it all.
"""
