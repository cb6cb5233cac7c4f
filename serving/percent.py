"""A measured share, as people read it."""


def percent(share: float) -> str:
    """Enough digits that 0.999 does not read as 100 %."""
    if share < 5e-5 or share > 1 - 5e-5:
        return f"{100 * share:.0f} %"
    return f"{100 * share:.2f} %" if share > 0.99 or share < 0.01 else f"{100 * share:.1f} %"
