/* Acknowledged writes: the bounded wait (P12), with the rules that it stands on (P4, P6, P7, P9).
 *
 * ACKNOWLEDGED  a read that begins after an acknowledged write has returned is not older than that write.
 *
 * One member (an instance with local tier, one reader, its subscriber), one writer in another process, without a local
 * tier. More members would only make the writer wait longer. (The writer's own instance is a member too; its reply is
 * knowledge, P7, which is in coherence.pml.) Versions are B * epoch + seq, as in coherence.pml.
 *
 * The rule. The script of an acknowledged write also returns the members that this history knows: each resync and each
 * heartbeat enters its instance, in the clock. Each member answers after it has applied the message. The write returns
 *   - when all of these members have answered, if the writer has known this epoch for longer than BOUND, or
 *   - when BOUND has passed on the writer's clock since the reply came: who has not answered has stopped serving (P4).
 * BOUND is max_staleness plus what clocks may differ by in that time.
 * (In the library the members are in a hash of their own, which another script reads after the write: who entered in
 * between has seen the write. It can be lost without the epoch, so it must be older than BOUND as well.)
 *
 * Time is discrete here, and really counted: a clock is the number of ticks since something, up to a limit beyond which
 * nothing depends on it. A member's clock may be DRIFT ticks slower than the others. A question is sent, executed and
 * answered in three steps, so that "horizon = the moment of sending" matters.
 *
 * Bounds: -DWMAX acknowledged writes, -DRMAX other writes, -DDMAX breaks, -DSMAX silent losses, -DLMAX losses of all
 * data. Each mutation takes ONE rule away:
 *   P12  NO_WAIT, ANSWER_BEFORE_APPLY, WAIT_FROM_SEND (the bound runs from before the command was sent),
 *        RECEIVERS_ONLY (members are those that the message reached), YOUNG_EPOCH (answers count in any epoch),
 *        NO_DRIFT_MARGIN
 *   P4   HORIZON_AT_ANSWER, PING_ONLY, CLOCK_STOPS (the member's clock stands still in suspend)
 *   P5   HORIZON_IGNORED
 *   P6   GENERATION_EARLY     P7  NO_TOKEN
 */
#ifndef WMAX
#define WMAX 2
#endif
#ifndef RMAX
#define RMAX 0
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
#define MAX_STALENESS 1
#define DRIFT 1
#ifdef NO_DRIFT_MARGIN
#define BOUND MAX_STALENESS
#else
#define BOUND (MAX_STALENESS + DRIFT)
#endif
#define B 8
#define EP(v) ((v) / B)
#define SQ(v) ((v) % B)
#define MAX(a, b) (((a) > (b)) -> (a) : (b))
mtype = { MESSAGE, ANSWER };

/* Redis */
byte clock = B + 1, val = B + 1;
bool member;                    /* the clock names the member: lost with it */
/* the member's connection */
chan q = [3] of { mtype, byte, byte };          /* MESSAGE: version.  ANSWER: clock, value */
bool conn;
byte asked;                     /* 0 nothing, 1 a heartbeat, 2 a resync was sent; 3, 4: it was executed */
byte asked_age;                 /* ticks of the member's clock since then */
/* the member */
byte l1, pos;
bool synced;
byte horizon_age = 9;           /* ticks of the member's clock since the horizon */
byte lag;                       /* ticks that the member's clock is behind */
bool tact, told; byte tmark;
byte owes;                      /* newest version applied whose message asked for an answer */
byte answered;                  /* ... and what has been answered */
/* the writer */
byte waited = 9, known = 9;     /* ticks since the reply came (9: not waiting); since this epoch is known */
byte epoch;                     /* the epoch that it knows; 0 none */
/* ghosts and counts */
byte done;                      /* newest acknowledged version that was returned */
byte breaks, silent, losses;

#define SERVES (horizon_age <= MAX_STALENESS)
inline drain() { do :: nempty(q) -> q?_,_,_ :: empty(q) -> break od }
inline publish(version) {
  if
  :: conn && nfull(q) -> q!MESSAGE(version, 0)
  :: conn && full(q) -> conn = 0; drain()
  :: !conn
  fi
}
inline write() { clock++; val = clock; printf("MSC: Redis executes write %d\n", val); publish(val) }

/* -- the writer (P12) --------------------------------------------------------------------------------------------------- */
proctype Writer() {
  byte n, p; bool wait;
  do
  :: n < WMAX ->
#ifdef WAIT_FROM_SEND
     atomic { n++; waited = 0; printf("MSC: the writer sends, and counts\n") }
#else
     n++;
#endif
     atomic {                                           /* one script: the write, and who must have seen it */
#ifdef RECEIVERS_ONLY
       wait = conn;
#endif
       write(); p = clock;
#ifndef RECEIVERS_ONLY
       wait = member
#endif
     }
     atomic {                                           /* the reply */
#ifndef WAIT_FROM_SEND
       waited = 0;
#endif
       if :: epoch != EP(p) -> epoch = EP(p); known = 0 :: else fi }
#ifndef NO_WAIT
     if
#ifdef YOUNG_EPOCH
     :: (!wait || answered >= p) -> printf("MSC: all members have answered\n")
#else
     :: (!wait || answered >= p) && known > BOUND -> printf("MSC: all members have answered\n")
#endif
     :: waited > BOUND && waited != 9 -> printf("MSC: the bound has passed\n")
     fi;
#endif
     atomic { done = MAX(done, p); waited = 9; printf("MSC: the acknowledged write %d returns\n", p); p = 0; wait = 0 }
  :: n == WMAX -> break
  od
}
proctype Remote() { byte n; do :: atomic { n < RMAX -> n++; write() } :: n == RMAX -> break od }

/* -- the member's reader (P4, P7) ----------------------------------------------------------------------------------------- */
#ifdef NO_TOKEN
#define MARK_ALLOWS(r) 1
#else
#define MARK_ALLOWS(r) ((r) >= tmark)
#endif
inline forget() {               /* P9: another epoch was seen */
  l1 = 0; pos = 0; synced = 0; horizon_age = 9; told = tact
}
proctype Reader() {
  byte r, inv; bool ok;
start:
  do
  ::
     atomic { inv = done;
#ifdef HORIZON_IGNORED
       ok = 1 }
#else
       ok = SERVES }
#endif
     atomic { if :: ok -> r = l1 :: else fi; ok = 0;
       if
       :: r != 0 -> printf("MSC: the reader hits %d\n", r); assert(r >= inv); r = 0; inv = 0; goto start
       :: r == 0 -> tact = 1
       fi }
     atomic { r = val; printf("MSC: the reader reads %d from Redis\n", r) }
     atomic {
       if
       :: pos != 0 && EP(r) == EP(pos) ->
          if :: l1 != 0 && l1 < r -> l1 = 0 :: else fi;
          if :: SQ(r) && synced && SERVES && !told && MARK_ALLOWS(r) && l1 <= r -> l1 = r;
                printf("MSC: the fill inserts %d\n", r) :: else fi
       :: pos != 0 && EP(r) > EP(pos) -> forget()
       :: else -> l1 = 0
       fi;
       assert(r >= inv); tact = 0; tmark = 0; told = 0; r = 0; inv = 0 }
  od
}

/* -- the member's subscriber (P4, P6, P8, P9, P12) --------------------------------------------------------------------------- */
inline apply(version) {
  if :: l1 != 0 && SQ(l1) < SQ(version) -> l1 = 0 :: else fi;
  if :: tact -> tmark = MAX(tmark, version) :: else fi;
  owes = version; printf("MSC: %d is applied\n", version)
}
inline advance_horizon() {
#ifdef HORIZON_AT_ANSWER
  horizon_age = 0
#else
  horizon_age = (asked_age < horizon_age -> asked_age : horizon_age)
#endif
}
proctype Subscriber() {
  byte v, w;
  do
  :: atomic { !conn -> synced = 0; asked = 0; asked_age = 0; printf("MSC: the break is noticed\n");
#ifdef GENERATION_EARLY
              told = tact
#endif
     }
     conn = 1
  :: atomic { conn && asked == 0 -> asked = (synced -> 1 : 2); asked_age = 0; printf("MSC: a question is sent\n") }
#ifdef ANSWER_BEFORE_APPLY
  :: atomic { conn && q?[MESSAGE, v, w] -> q?<MESSAGE, v, w>; answered = MAX(answered, v); v = 0 }
#endif
  :: atomic { conn && q?[MESSAGE, v, w] -> q?MESSAGE(v, w);
       if
       :: pos != 0 && EP(v) == EP(pos) ->
          apply(v);
          if
          :: synced && SQ(v) == SQ(pos) + 1 -> pos = v
          :: synced && SQ(v) != SQ(pos) + 1 -> synced = 0
          :: !synced
          fi
       :: pos != 0 && EP(v) > EP(pos) -> forget()
       :: pos == 0 || EP(v) < EP(pos)
       fi; v = 0 }
  :: atomic { conn && q?[ANSWER, v, w] -> q?ANSWER(v, w);
       if
       :: asked == 4 ->                                                 /* the resync: replay, or flush */
          if
          :: pos != 0 && EP(v) == EP(pos) && v >= pos ->
             if :: l1 > pos -> l1 = 0 :: else fi;
             if
             :: v == pos
             :: v != pos -> if :: w > pos -> apply(w) :: else fi
             :: v != pos -> l1 = 0
             fi
          :: else -> l1 = 0
          fi;
          pos = v; synced = 1; advance_horizon();
#ifndef GENERATION_EARLY
          told = tact;
#endif
          printf("MSC: the resync is complete at %d\n", v)
#ifdef PING_ONLY
       :: asked == 3 && synced -> advance_horizon(); printf("MSC: a heartbeat proves %d\n", v)
       :: asked == 3 && !synced
#else
       :: asked == 3 && synced && v == pos -> advance_horizon(); printf("MSC: a heartbeat proves %d\n", v)
       :: asked == 3 && (!synced || v != pos) -> synced = 0
#endif
       fi; asked = 0; asked_age = 0; v = 0; w = 0 }
  :: atomic { owes > answered -> answered = owes; printf("MSC: %d is answered\n", owes) }
  od
}

/* -- Redis executes what was asked; time; faults --------------------------------------------------------------------------- */
inline member_tick() {
  if :: horizon_age <= MAX_STALENESS -> horizon_age++ :: else fi;
  if :: asked != 0 && asked_age <= MAX_STALENESS -> asked_age++ :: else fi
}
proctype World() {
  do
  :: atomic { conn && (asked == 1 || asked == 2) && nfull(q) -> asked = asked + 2; member = 1; q!ANSWER(clock, val);
              printf("MSC: the question is executed: %d\n", clock) }
  :: atomic { breaks < DMAX && conn -> breaks++; conn = 0; drain(); printf("MSC: the connection breaks\n") }
  :: atomic { silent < SMAX && conn && q?[MESSAGE, _, _] -> silent++; q?MESSAGE(_, _);
              printf("MSC: a message is lost without a trace\n") }
  :: atomic { losses < LMAX -> losses++; clock = B * (EP(clock) + 1); val = clock; member = 0;
              printf("MSC: Redis loses everything, a new epoch begins\n") }
  :: atomic { l1 != 0 -> l1 = 0 }
  /* A tick: for the writer always, for the member unless its clock lags; it may catch up. */
  :: atomic {
       if
       :: member_tick()
       :: lag > 0 -> lag--; member_tick(); member_tick()
#ifdef CLOCK_STOPS
       :: skip
#else
       :: lag < DRIFT -> lag++
#endif
       fi;
       if :: waited <= BOUND -> waited++ :: else fi;
       if :: known <= BOUND -> known++ :: else fi;
       printf("MSC: tick: the horizon is %d old\n", horizon_age) }
  od
}
init { atomic { run Subscriber(); run Reader(); run Writer(); run Remote(); run World() } }
