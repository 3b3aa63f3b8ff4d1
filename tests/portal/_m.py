import time
from tests.portal.test_progress import *
def test_m(world):
    request_id = world.submitted(); put_trials(world.ledger, request_id, 10_000)
    v = Visitor(world).signed_in("growth/read")
    for _ in range(3): v.get(f"/requests/{request_id}")
    ts=[]
    for _ in range(12):
        t=time.perf_counter(); v.get(f"/requests/{request_id}"); ts.append(time.perf_counter()-t)
    r=world.ledger.request(request_id); t=time.perf_counter(); progress(r,ledger=world.ledger,settings=world.settings); print("progress",time.perf_counter()-t)
    print(sorted(ts))
    ts=[]
    for path in ("/", f"/new/form?dataset={world.upload()}"):
        for _ in range(3): v.get(path)
        t=time.perf_counter()
        for _ in range(10): v.get(path)
        print(path,(time.perf_counter()-t)/10)
