/* The default mode of the protocol: tokens, generations, epochs, heartbeats, resyncs (P1-P9, P14).
 *
 * One shard, one key, one instance in full: NR readers and one writer (threads), its subscriber thread with one
 * connection, its local tier. All other instances together are `Remote`: they touch this one only through Redis, so the
 * projection on one instance loses nothing.
 *
 * A version is one number, B * epoch + seq. Redis makes epochs one after the other here, so that numbers tell the true
 * order of execution; the *properties* compare these numbers. The *protocol* may not: epochs are random there, so it
 * compares epochs for equality and seqs within an epoch (EP, SQ).
 *
 * What can go wrong: the connection breaks, noticed late, and what was queued in it is lost; the server's output buffer
 * is full; one message is lost without a trace; the log does not reach back far enough; Redis loses all its data and
 * begins a new epoch; an own write is given up and executed later; local eviction; a heartbeat is late.
 *
 * Time is abstract: `oldv` is the newest version that was executed more than max_staleness ago. Time may pass at any
 * moment; a horizon older than oldv is then invalid. A question to Redis is sent and executed in one step, which makes
 * the horizon of the model younger than the real one: the checked bound is the stricter one.
 *
 * -DCHECK=APPLIED   no read is older than the newest version whose message was applied here before it began     (P7, P8)
 * -DCHECK=BOUND     no read is older than max_staleness                                                          (P4, P5)
 * -DCHECK=MONOTONE  no read is older than what an operation of this instance returned before it began                (P7)
 * -DCHECK=CONVERGE  when all is quiet and a heartbeat has come back since, the local entry is Redis'
 *
 * Bounds: -DNR readers, -DWMAX own writes, -DRMAX others' writes, -DDMAX breaks, -DSMAX silent losses, -DLMAX losses of
 * all data, -DOTHER with writes on another key, -DQL length of the connection's queue.
 *
 * Each mutation takes ONE rule away: NO_TOKEN TOKEN_LATE SPLIT_INSERT NO_KNOWLEDGE OWN_MESSAGES_SKIPPED (P7)
 * NO_GENERATION GENERATION_EARLY BLIND_RESYNC GAP_IGNORED (P6) PING_ONLY HORIZON_AT_ANSWER LOOKUP_FIRST (P4)
 * HORIZON_IGNORED (P5) EPOCH_IGNORED (P9) REPLICA_READ (P14).
 * Nothing breaks with INSERT_WHILE_DOUBTED (P5): what is read while the stream is in doubt is within the old horizon, and
 * the resync that ends the doubt evicts it, as a part of the replay or as above the proven position.
 */
#define APPLIED 1
#define BOUND 2
#define MONOTONE 3
#define CONVERGE 4
#ifndef CHECK
#define CHECK CONVERGE
#endif
#ifndef NR
#define NR 1
#endif
#ifndef WMAX
#define WMAX 1
#endif
#ifndef RMAX
#define RMAX 1
#endif
#ifndef DMAX
#define DMAX 1
#endif
#ifndef SMAX
#define SMAX 0
#endif
#ifndef LMAX
#define LMAX 0
#endif
#ifndef QL
#define QL 3
#endif

#define B 8
#define EP(v) ((v) / B)
#define SQ(v) ((v) % B)
#define INF 255                         /* newer than anything */
#define MAX(a, b) (((a) > (b)) -> (a) : (b))
#define OWN NR                          /* the writer's token; readers have 0 .. NR-1 */
#define NT (NR + 1)

/* Ghosts: only what the property needs, for the sake of the number of states. */
#if CHECK == APPLIED
#define LOWER maxapp
#define G_APPLIED(v) maxapp = MAX(maxapp, v)
#else
#define G_APPLIED(v) skip
#endif
#if CHECK == BOUND
#define LOWER oldv
#define G_HORIZON(g) hv = MAX(hv, g); valid = (hv >= oldv)
#else
#define G_HORIZON(g) valid = 1
#endif
#if CHECK == MONOTONE
#define LOWER seen
#define G_SEEN(v) seen = MAX(seen, v)
#else
#define G_SEEN(v) skip
#endif
#if CHECK == CONVERGE
#define LOWER 0
#define G_BEAT(c) beat = c
#else
#define G_BEAT(c) skip
#endif

mtype = { MESSAGE, ANSWER };

/* -- Redis ---------------------------------------------------------------------------------------------------------- */
byte clock = B + 1;             /* epoch and seq of the shard */
byte val = B + 1;               /* version of the key's value; seq 0: there is none, its history was lost */
#ifdef REPLICA_READ
byte replica = B + 1;           /* what a replica that lags has */
#endif
/* -- the connection: in order, lost as a whole ------------------------------------------------------------------------ */
chan q = [QL] of { mtype, byte, byte, bool };   /* MESSAGE: version, this key's?, own?  ANSWER: clock, value, - */
bool conn;
byte asked;                     /* 0 nothing, 1 a heartbeat, 2 a resync is on its way */
/* -- the instance ---------------------------------------------------------------------------------------------------- */
byte l1;                        /* the local entry's version; 0 for none */
byte pos;                       /* epoch and seq of the last message applied in order; 0: no history is known */
bool synced;                    /* messages continue the position: COHERENT */
bool valid;                     /* now - horizon <= max_staleness */
bool tact[NT], told[NT];        /* tokens: registered; registered in an earlier generation */
byte tmark[NT];
/* -- ghosts and counts of faults --------------------------------------------------------------------------------------- */
byte maxapp, hv, oldv, seen, beat, ended;
byte breaks, silent, losses;

/* -- tokens (P7) ------------------------------------------------------------------------------------------------------ */
inline register(token) { tact[token] = 1 }
inline release(token) { tact[token] = 0; tmark[token] = 0; told[token] = 0 }
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
#ifdef NO_TOKEN
#define MARK_ALLOWS(t, r) 1
#else
#define MARK_ALLOWS(t, r) ((r) >= tmark[t])
#endif
#ifdef NO_GENERATION
#define GENERATION_ALLOWS(t) 1
#else
#define GENERATION_ALLOWS(t) (!told[t])
#endif
#ifdef INSERT_WHILE_DOUBTED
#define STATE_ALLOWS valid
#else
#define STATE_ALLOWS (valid && synced)
#endif
#define MAY_INSERT(t, r) (SQ(r) != 0 && STATE_ALLOWS && GENERATION_ALLOWS(t) && MARK_ALLOWS(t, r) && SQ(l1) <= SQ(r))

/* -- what is learnt --------------------------------------------------------------------------------------------------- */
inline evict_older(than) { if :: l1 != 0 && SQ(l1) < SQ(than) -> l1 = 0 :: else fi }
inline forget() {               /* P9: another epoch was seen */
  l1 = 0; pos = 0; synced = 0; valid = 0; new_generation()
}
#ifdef EPOCH_IGNORED
#define SAME_EPOCH(v) (pos != 0)
#else
#define SAME_EPOCH(v) (pos != 0 && EP(v) == EP(pos))
#endif
#define NEW_EPOCH(v) (pos != 0 && EP(v) > EP(pos))      /* the code remembers the past ones */

inline learn(known) {               /* P7: what a reply says works like a message */
  if
  :: SAME_EPOCH(known) ->
#ifndef NO_KNOWLEDGE
     evict_older(known); mark_all(known)
#else
     skip
#endif
  :: else -> if :: NEW_EPOCH(known) -> forget() :: else -> l1 = 0; mark_all(INF) fi      /* no order: distrust the key */
  fi
}
inline absorb(token_, r_) {      /* check and insertion are one step with respect to applying messages */
#ifdef SPLIT_INSERT
  ok = SAME_EPOCH(r_) && MAY_INSERT(token_, r_);
  atomic { learn(r_); if :: ok -> l1 = r_; printf("MSC: token %d inserts %d\n", token_, r_) :: else fi; ok = 0;
#else
  atomic { learn(r_);
           if :: SAME_EPOCH(r_) && MAY_INSERT(token_, r_) -> l1 = r_; printf("MSC: token %d inserts %d\n", token_, r_)
              :: else -> printf("MSC: token %d may not insert %d\n", token_, r_) fi;
#endif
           release(token_); G_SEEN(r_); assert(r_ >= inv); r_ = 0; inv = 0 }
}

/* -- readers ---------------------------------------------------------------------------------------------------------- */
proctype Reader(byte t) {
  byte r, inv; bool ok;
start:
  do
  ::
#ifdef LOOKUP_FIRST
     atomic { inv = LOWER; r = l1 }
     atomic { ok = valid; if :: !ok -> r = 0 :: else fi; ok = 0;
#else
     atomic { inv = LOWER;                                      /* P4: the horizon first, ... */
#ifdef HORIZON_IGNORED
       ok = 1 }
#else
       ok = valid }
#endif
     atomic { if :: ok -> r = l1 :: else fi; ok = 0;            /* ... then the look-up */
#endif
       if
       :: r != 0 -> printf("MSC: reader %d hits %d\n", t, r); assert(r >= inv); G_SEEN(r); r = 0; inv = 0; goto start
       :: r == 0 ->
#ifndef TOKEN_LATE
          register(t)
#else
          skip
#endif
       fi }
     atomic {                                                   /* Redis executes the read, some time later (P2) */
#ifdef REPLICA_READ
       if :: r = val :: r = replica; inv = 0 fi;
#else
       r = val;
#endif
       printf("MSC: reader %d reads %d from Redis\n", t, r) }
#ifdef TOKEN_LATE
     register(t);
#endif
     absorb(t, r)
  od
}

/* -- writes (P1): one script bumps the clock, publishes, stores --------------------------------------------------------- */
inline drain() { do :: nempty(q) -> q?_,_,_,_ :: empty(q) -> break od }
inline publish(version, of_key, by_own) {
  if
  :: conn && nfull(q) -> q!MESSAGE(version, of_key, by_own)
  :: conn && full(q) -> printf("MSC: output buffer limit\n"); conn = 0; drain()
  :: !conn
  fi
}
inline write(mine) {
  clock++; val = clock; printf("MSC: Redis executes write %d (own: %d)\n", val, mine); publish(val, 1, mine)
}

proctype Writer() {
  byte r, inv, n; bool ok;
  do
  :: n < WMAX ->
     atomic { n++; register(OWN) }
     if
     :: atomic { write(1); r = val }
        absorb(OWN, r)
     :: atomic { printf("MSC: an own write is given up\n");     /* ambiguous: distrust the key, ... */
                 l1 = 0; mark_all(INF); release(OWN) }
        if :: atomic { write(1) } :: skip fi                    /* ... for it may be executed now, or never */
     fi
  :: n == WMAX -> break
  od
}
proctype Remote() {
  byte n;
  do
  :: atomic { n < RMAX -> n++; write(0) }
#ifdef OTHER
  :: atomic { n < RMAX -> n++; clock++; publish(clock, 0, 0) }          /* a write on another key */
#endif
  :: n == RMAX -> break
  od
}

/* -- the subscriber thread (P3-P6, P8, P9) ------------------------------------------------------------------------------ */
inline doubt() { synced = 0 }
inline resync(now_clock, now_val) {
  if
  :: pos != 0 && EP(now_clock) == EP(pos) && now_clock >= pos ->        /* proven (by the nonce, see failover.pml) */
     if
#ifndef BLIND_RESYNC
     :: l1 != 0 && SQ(l1) > SQ(pos) -> l1 = 0           /* ahead of the position: not proven */
     :: else
#else
     :: skip
#endif
     fi;
     if
     :: now_clock == pos
#ifndef BLIND_RESYNC
     :: now_clock != pos -> if :: SQ(now_val) > SQ(pos) -> evict_older(now_val); mark_all(now_val); G_APPLIED(now_val) :: else fi   /* replay */
     :: now_clock != pos -> l1 = 0; G_APPLIED(now_val)                                                /* the log is too short: flush */
#else
     :: now_clock != pos
#endif
     fi
  :: else -> l1 = 0; G_APPLIED(now_val)                       /* flush */
  fi;
  pos = now_clock;
#ifndef GENERATION_EARLY
  new_generation();                                     /* P6: in the same critical section, and not earlier */
#endif
  synced = 1
}

proctype Subscriber() {
  byte v, w; bool o;
  do
  :: atomic { !conn -> printf("MSC: the break is noticed\n"); doubt(); asked = 0;
#ifdef GENERATION_EARLY
              new_generation()
#endif
     }
     atomic { conn = 1; printf("MSC: SUBSCRIBE is confirmed\n") }
  :: atomic { conn && asked == 0 && nfull(q) -> asked = (synced -> 1 : 2); q!ANSWER(clock, val, 0) }
  :: atomic { conn && q?[MESSAGE, v, w, o] -> q?MESSAGE(v, w, o);
       printf("MSC: message %d comes\n", v);
       if
#ifdef OWN_MESSAGES_SKIPPED
       :: o && SAME_EPOCH(v) && synced && SQ(v) == SQ(pos) + 1 -> pos = v
       :: !o && SAME_EPOCH(v) ->
#else
       :: SAME_EPOCH(v) ->
#endif
          if :: w -> evict_older(v); mark_all(v); G_APPLIED(v) :: else fi;
          if
          :: !synced
          :: synced && SQ(v) == SQ(pos) + 1 -> pos = v
#ifdef GAP_IGNORED
          :: synced && SQ(v) != SQ(pos) + 1 -> pos = v
#else
          :: synced && SQ(v) != SQ(pos) + 1 -> doubt()          /* a gap, or a step back */
#endif
          fi
       :: !SAME_EPOCH(v) && NEW_EPOCH(v) -> forget(); G_APPLIED(v)
       :: else                                                  /* a past epoch's, or none is known: the resync covers it */
       fi; v = 0; w = 0; o = 0 }
  :: atomic { conn && q?[ANSWER, v, w, o] -> q?ANSWER(v, w, o);
       if
       :: asked == 2 -> resync(v, w); G_BEAT(v);
          printf("MSC: the resync is complete at %d\n", pos);
#ifdef HORIZON_AT_ANSWER
          G_HORIZON(val)
#else
          G_HORIZON(w)
#endif
#ifdef PING_ONLY
       :: asked == 1 && synced ->
#else
       :: asked == 1 && synced && v == pos ->                   /* P4: the clock equals what was applied */
#endif
          G_BEAT(v); printf("MSC: a heartbeat proves %d\n", v);
#ifdef HORIZON_AT_ANSWER
          G_HORIZON(val)
#else
          G_HORIZON(w)
#endif
       :: else -> doubt(); printf("MSC: a heartbeat differs\n")
       fi; asked = 0; v = 0; w = 0 }
  od
}

/* -- what may happen at any moment -------------------------------------------------------------------------------------- */
proctype World() {
  do
  :: atomic { breaks < DMAX && conn -> breaks++; conn = 0; drain(); printf("MSC: the connection breaks\n") }
  :: atomic { silent < SMAX && conn && q?[MESSAGE, _, _, _] -> silent++; q?MESSAGE(_, _, _);
              printf("MSC: a message is lost without a trace\n") }
  :: atomic { losses < LMAX -> losses++; ended = val; clock = B * (EP(clock) + 1); val = clock;
              printf("MSC: Redis loses everything, a new epoch begins\n") }
  :: atomic { l1 != 0 -> l1 = 0; printf("MSC: local eviction\n") }
#if CHECK == BOUND
  :: atomic { oldv < val -> oldv = (oldv == ended -> B * EP(val) : oldv + 1);
              printf("MSC: %d is now older than max_staleness\n", oldv); if :: hv < oldv -> valid = 0 :: else fi }
#endif
  :: atomic { valid -> valid = 0; printf("MSC: the horizon lapses\n") }
#ifdef REPLICA_READ
  :: atomic { replica < val -> replica = val }
#endif
  od
}

/* connected, nothing on its way, and a heartbeat or resync executed after the last write has come back */
#if NR == 2
#define IDLE (!tact[0] && !tact[1] && !tact[2])
#else
#define IDLE (!tact[0] && !tact[1])
#endif
#define QUIET (conn && synced && empty(q) && IDLE && beat == clock)
proctype Monitor() {
  do :: atomic { QUIET && l1 != 0 -> printf("MSC: all quiet: local %d, Redis %d\n", l1, val); assert(l1 == val) } od
}

init { atomic {
#if CHECK == BOUND
  oldv = B + 1;
#endif
  run Subscriber(); run Reader(0);
#if NR == 2
  run Reader(1);
#endif
  run Writer(); run Remote(); run World()
#if CHECK == CONVERGE
  ; run Monitor()
#endif
} }
