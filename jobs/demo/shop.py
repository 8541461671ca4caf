"""A shop made up for the demo: the same one for the same seed."""

import csv
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

SEED = 20_260
USERS = 2_000
PAST_ORDERS = 5_000
NEVER = "NEVER"
"""What references begin with in transactions that are rolled back; the judge looks for it."""
OPENED = datetime(2025, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Article:
    """What the shop sells."""

    sku: str
    name: str
    price_cents: int
    stock: int


def email(number: int) -> str:
    """Of the shop's own n-th user."""
    return f"customer-{number:05}@shop.example"


def assortment(orders: int) -> list[Article]:
    """Enough of everything for `orders`, but for the last article, which runs out."""
    dice = random.Random(SEED)  # noqa: S311 - reproducible, not secret
    articles = [Article(f"SKU-{n:02}", f"Article {n}", dice.randint(199, 9_999), 10 * orders + 100) for n in range(20)]
    return [*articles, Article("RARE", "The last ones", 49_900, max(5, orders // 100))]


def write_users(path: Path) -> None:
    """`email,name`, as `users.import` reads it."""
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(("email", "name"))
        out.writerows((email(number), f"Customer {number}") for number in range(1, USERS + 1))


def write_orders(path: Path) -> None:
    """Orders of the past, as `orders.import` reads them; some have several lines."""
    dice = random.Random(SEED)  # noqa: S311 - reproducible, not secret
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(("reference", "email", "placed_at", "sku", "quantity", "amount"))
        for number in range(1, PAST_ORDERS + 1):
            buyer, placed = email(dice.randint(1, USERS)), OPENED + timedelta(minutes=dice.randint(0, 500_000))
            for _ in range(dice.choice((1, 1, 1, 2, 3))):
                cents = dice.randint(100, 20_000)
                row = (
                    f"PAST-{number:06}",
                    buyer,
                    placed.isoformat(),
                    f"SKU-{dice.randint(0, 19):02}",
                    dice.randint(1, 5),
                )
                out.writerow((*row, f"{cents // 100}.{cents % 100:02}"))
