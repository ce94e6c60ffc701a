from tests.rig import Rig
from tallystream import Producer
from tallystream.totals import Totals
from tallystream.ledger import query_ledger
from tests.waiting import until

def test_first(server):
    with Rig(server.url) as rig, Producer(server.url) as p, Totals(server.url) as t:
        for i in range(100):
            p.emit("view", f"article:{i}")
        p.flush(5)
        rig.drain()
        p.flush(5, wait="counted")
        assert sum(rig.totals().values()) == 100
        assert t.get("article:1","view") == 1
        assert t.run(query_ledger(rig.layout)).unaccounted == 0
