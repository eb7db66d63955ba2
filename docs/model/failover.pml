/* Failover to a replica that lags: history goes back, and numbers are used again (P6, P16).
 *
 * Server 0 is the old primary. It lives on for connections that are still open, and may even take writes from its side
 * of a partition. Server 1 is the replica that is promoted: it has a beginning of 0's history, of the same epoch, and
 * then goes on with writes of its own. Every write has an id, which is its nonce. With -DFOLLOW server 0 may be made a replica
 * of server 1 while it keeps its connections: it copies 1's history, and forwards what 1 publishes from then on.
 * One instance: its subscriber, NR readers and one writer, whose command connections may lead to either server.
 *
 * -DCHECK=CONVERGE   when all is quiet and the subscriber is synchronised with 1, the local entry is 1's current value
 * -DCHECK=OWN_WRITE  when an own write returns, no local entry is left that is older than it
 * -DCHECK=BOTH       (what is meant without any)
 * With FOLLOW an acknowledged write is discarded while its connection lives on, so OWN_WRITE promises nothing there.
 *
 * Bounds: -DNR readers, -DW0 writes on 0, -DW1 on 1 by others, -DWMAX own writes; -DOTHER with writes on another key.
 * Each mutation takes one rule away: NO_NONCE (the same seq proves the same history), KEEP_AHEAD (a proven resync keeps
 * entries above the position), NO_GENERATION, NUMBER_ALONE (a message continues the position by its number, whatever its
 * predecessor) (P6); NO_BINDING (a fill may come from any server), SEQ_BINDING (instead: the reply's clock is not below the
 * position), COMPARE_ANYWAY (versions of another server are compared by number), BINDING_EARLY (the binding changes when the
 * subscriber connects, not with the resync) (P16).
 */
#define CONVERGE 1
#define OWN_WRITE 2
#define BOTH 3
#ifndef CHECK
#define CHECK BOTH
#endif
#ifndef NR
#define NR 1
#endif
#ifndef W0
#define W0 2
#endif
#ifndef W1
#define W1 2
#endif
#ifndef WMAX
#define WMAX 1
#endif
#define N 8
#define INF 255
#define OWN NR
#define MAX(a, b) (((a) > (b)) -> (a) : (b))

typedef History { byte id[N]; byte last = 1; byte val = 1; bool of_key[N] };
History h[2];                           /* id of the write at each seq, as each server has it; val: seq of the key's value */
byte ids = 1, written0, written1;
bool failed;                            /* 1 was promoted: new connections lead there */
bool follows;                           /* 0 was made a replica of 1 */

byte at;                                /* the server that the subscriber's connection leads to */
byte bound;                             /* the server that the last complete resync was with (P16) */
bool conn, synced;
byte pos, nonce;                        /* last message applied: its seq and id; pos 0: none */
chan q = [3] of { byte, byte, byte, bool };     /* seq, id, the predecessor's id, this key's? */
byte l1, l1id;                          /* the local entry: seq and id; 0 for none */
bool tact[NR + 1], told[NR + 1]; byte tmark[NR + 1];

inline mark_one(token, newer) { if :: tact[token] -> tmark[token] = MAX(tmark[token], newer) :: else fi }
inline mark_all(mark) {
  mark_one(0, mark); mark_one(1, mark)
#if NR == 2
  ; mark_one(2, mark)
#endif
}
inline new_generation() {
  told[0] = tact[0]; told[1] = tact[1]
#if NR == 2
  ; told[2] = tact[2]
#endif
}
inline drop() { l1 = 0; l1id = 0 }
inline evict_older(than) { if :: l1 < than -> drop() :: else fi }
inline drain() { do :: nempty(q) -> q?_,_,_,_ :: empty(q) -> break od }
inline publish(server) {                /* the last write of its history */
  if
  :: conn && at == server && nfull(q) ->
     q!h[server].last,h[server].id[h[server].last],h[server].id[h[server].last - 1],h[server].of_key[h[server].last]
  :: conn && at == server && full(q) -> conn = 0; drain()
  :: !conn || at != server
  fi
}
inline write(server, this_key) {
  ids++; h[server].last++; h[server].id[h[server].last] = ids; h[server].of_key[h[server].last] = this_key;
  if :: this_key -> h[server].val = h[server].last :: else fi;
  printf("MSC: server %d executes write %d, id %d, of this key: %d\n", server, h[server].last, ids, this_key);
  publish(server)
}
inline replicate(to, from) {            /* the next write */
  h[to].last++; h[to].id[h[to].last] = h[from].id[h[to].last]; h[to].of_key[h[to].last] = h[from].of_key[h[to].last];
  if :: h[to].of_key[h[to].last] -> h[to].val = h[to].last :: else fi
}

proctype Redis() {
#ifdef FOLLOW
  byte gone = N - 1;
#endif
  do
  :: atomic { written0 < W0 && !follows -> written0++; write(0, 1) }            /* also after the failover */
#ifdef OTHER
  :: atomic { written0 < W0 && !follows -> written0++; write(0, 0) }
#endif
  :: atomic { !failed && h[1].last < h[0].last -> replicate(1, 0); printf("MSC: %d is replicated\n", h[1].last) }
  :: atomic { !failed -> failed = 1; printf("MSC: failover: server 1 is promoted at %d\n", h[1].last) }
  :: atomic { failed && written1 < W1 -> written1++; write(1, 1) }
#ifdef OTHER
  :: atomic { failed && written1 < W1 -> written1++; write(1, 0) }
#endif
#ifdef FOLLOW
  :: atomic { failed && !follows -> follows = 1; h[0].last = 1; h[0].val = 1;
              do :: h[0].last < h[1].last -> replicate(0, 1) :: else -> break od;
              do :: gone > h[0].last -> h[0].id[gone] = 0; h[0].of_key[gone] = 0; gone-- :: else -> break od; gone = N - 1;
              printf("MSC: server 0 follows server 1, and has copied %d\n", h[0].last) }
  :: atomic { follows && h[0].last < h[1].last -> replicate(0, 1); printf("MSC: server 0 forwards %d\n", h[0].last); publish(0) }
#endif
  :: atomic { conn && at == 0 && failed -> conn = 0; drain(); printf("MSC: the subscriber loses server 0\n") }
  od
}

#ifdef NUMBER_ALONE
#define CONTINUES (c == pos + 1)
#else
#define CONTINUES (c == pos + 1 && p == nonce)
#endif
proctype Subscriber() {
  byte c, n, p; bool k;
  do
  :: atomic { !conn -> synced = 0; at = (failed -> 1 : 0); conn = 1;
#ifdef BINDING_EARLY
              bound = at;
#endif
              printf("MSC: subscribed to server %d\n", at) }
  :: atomic { conn && !synced && at == 0 && follows -> conn = 0; drain(); printf("MSC: server 0 accepts no writes\n") }
  :: atomic { conn && !synced && !(at == 0 && follows) ->                       /* the resync, executed and applied */
       c = h[at].last; n = h[at].id[pos];
       if
#ifdef NO_NONCE
       :: pos != 0 && pos <= c ->
#else
       :: pos != 0 && pos <= c && n == nonce ->
#endif
#ifndef KEEP_AHEAD
          if :: l1 > pos -> drop() :: else fi;
#endif
          if :: h[at].val > pos -> evict_older(h[at].val); mark_all(h[at].val) :: else fi       /* replay */
       :: else -> drop()
       fi;
       pos = c; nonce = h[at].id[c]; bound = at; drain(); new_generation(); synced = 1; c = 0; n = 0;
       printf("MSC: the resync with server %d is complete at %d\n", at, pos) }
  :: atomic { conn && synced && q?[c, n, p, k] -> q?c,n,p,k; printf("MSC: message %d comes\n", c);
       if :: k -> evict_older(c); mark_all(c) :: else fi;
       if
       :: CONTINUES -> pos = c; nonce = n
       :: else -> synced = 0                            /* a gap, a step back, or another history */
       fi; c = 0; n = 0; p = 0; k = 0 }
  od
}

#if defined(NO_BINDING)
#define BOUND_TO(c, r) 1
#elif defined(SEQ_BINDING)
#define BOUND_TO(c, r) ((r) >= floor)
#else
#define BOUND_TO(c, r) ((c) == bound)
#endif
#ifdef NO_GENERATION
#define GENERATION_ALLOWS(t) 1
#else
#define GENERATION_ALLOWS(t) (!told[t])
#endif
#if defined(COMPARE_ANYWAY) || defined(NO_BINDING) || defined(SEQ_BINDING)
#define COMPARABLE(c) 1
#else
#define COMPARABLE(c) ((c) == bound)
#endif

inline absorb(t_, c_, r_, u_) {         /* P7, P16: in one step with respect to applying messages */
  if
  :: COMPARABLE(c_) -> evict_older(r_); mark_all(r_)
  :: else -> drop(); mark_all(INF)      /* no order between the versions: distrust the key */
  fi;
  if
  :: conn && synced && BOUND_TO(c_, r_) && GENERATION_ALLOWS(t_) && r_ >= tmark[t_] && l1 <= r_ ->
       l1 = r_; l1id = u_; printf("MSC: %d of server %d is inserted\n", r_, c_)
  :: else -> printf("MSC: %d of server %d is not inserted\n", r_, c_)
  fi;
  tact[t_] = 0; tmark[t_] = 0; told[t_] = 0
}

proctype Reader(byte t) {
  byte c, r, u, floor;
  do
  :: atomic { l1 == 0 -> tact[t] = 1; floor = pos; if :: c = 0 :: failed -> c = 1 fi }
     atomic { r = h[c].val; u = h[c].id[r]; printf("MSC: server %d answers %d, id %d\n", c, r, u) }
     atomic { absorb(t, c, r, u); c = 0; r = 0; u = 0; floor = 0 }
  :: atomic { l1 != 0 -> drop() }                                               /* eviction */
  od
}
proctype Writer() {
  byte c, r, u, n, floor;
start:
  do
  :: n < WMAX ->
     atomic { n++; tact[OWN] = 1; floor = pos; if :: c = 0 :: failed -> c = 1 fi }
     if
     :: atomic { c == 0 && follows -> tact[OWN] = 0; tmark[OWN] = 0; told[OWN] = 0; c = 0; floor = 0; goto start }   /* refused */
     :: atomic { !(c == 0 && follows) -> write(c, 1); r = h[c].last; u = ids }
     fi;
     atomic { absorb(OWN, c, r, u); printf("MSC: the own write %d returns, local is id %d\n", u, l1id);
#if CHECK & OWN_WRITE
              assert(l1 == 0 || l1id >= u);
#endif
              c = 0; r = 0; u = 0; floor = 0 }
  :: n == WMAX -> break
  od
}
#if NR == 2
#define IDLE (!tact[0] && !tact[1] && !tact[2])
#else
#define IDLE (!tact[0] && !tact[1])
#endif
proctype Monitor() {
  do
  :: atomic { failed && at == 1 && conn && synced && empty(q) && pos == h[1].last && IDLE && l1 != 0 ->
       printf("MSC: all quiet: local is %d, id %d; server 1 has id %d\n", l1, l1id, h[1].id[h[1].val]);
       assert(l1id == h[1].id[h[1].val]) }
  od
}
init { atomic {
  h[0].id[1] = 1; h[1].id[1] = 1; h[0].of_key[1] = 1; h[1].of_key[1] = 1;
  run Redis(); run Subscriber(); run Reader(0);
#if NR == 2
  run Reader(1);
#endif
  run Writer()
#if CHECK & CONVERGE
  ; run Monitor()
#endif
} }
