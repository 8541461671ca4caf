"""The order job: one transaction as a shop has them. The same lines run under every contender.

Imported in the peers' environments too, so it needs SQLAlchemy and nothing of ours.
"""

from collections.abc import Sequence

from sqlalchemy import ARRAY, BigInteger, ForeignKey, Text, any_, literal, update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, joinedload, mapped_column, relationship

SCHEMA = """
create table bench_user (id bigint primary key, email text not null unique, name text not null);
create table bench_order (
    id bigint primary key, user_id bigint not null references bench_user, status text not null default 'pending',
    total_cents bigint not null, paid_by text, paid int not null default 0
);
insert into bench_user select n, 'user' || n || '@example.org', 'User ' || n from generate_series(0, 999) n;
insert into bench_order (id, user_id, total_cents) select n, n % 1000, 100 + n % 7919 from generate_series(0, {last}) n;
"""
"""Orders 0 … last, each with one of a thousand users."""


class Base(DeclarativeBase):
    type_annotation_map = {str: Text, int: BigInteger}  # noqa: RUF012 - SQLAlchemy's own form


class User(Base):
    __tablename__ = "bench_user"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]
    name: Mapped[str]


class Order(Base):
    __tablename__ = "bench_order"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id))
    status: Mapped[str]
    total_cents: Mapped[int]
    paid_by: Mapped[str | None]
    paid: Mapped[int]
    """How often it was paid: 1 for each order, or the run doesn't count."""

    user: Mapped[User] = relationship(lazy="raise")


async def pay(session: AsyncSession, n: int) -> None:
    """SELECT … FOR UPDATE with the user, and one UPDATE. The commit is the caller's."""
    order = await session.get_one(
        Order, n, options=[joinedload(Order.user, innerjoin=True)], with_for_update={"of": Order}
    )
    order.status = "paid"
    order.paid_by = order.user.email
    order.paid += 1
    await session.flush()


async def pay_many(session: AsyncSession, numbers: Sequence[int]) -> None:
    """The same for many orders in one statement."""
    await session.execute(
        update(Order)
        .where(Order.id == any_(literal(list(numbers), ARRAY(BigInteger))), Order.user_id == User.id)
        .values(status="paid", paid_by=User.email, paid=Order.paid + 1)
        .execution_options(synchronize_session=False)
    )


def connect(database_url: str, slots: int) -> async_sessionmaker[AsyncSession]:
    """Sessions of an engine with a connection for each slot, as a peer's user would make them."""
    url = database_url.replace("postgresql://", "postgresql+asyncpg://", 1)
    engine = create_async_engine(url, pool_size=slots, max_overflow=0)
    return async_sessionmaker(engine, expire_on_commit=False)


async def pay_in_session(sessions: async_sessionmaker[AsyncSession], n: int) -> None:
    """The whole job for whoever has no transaction of its own: fresh session, work, commit."""
    async with sessions() as session:
        await pay(session, n)
        await session.commit()
