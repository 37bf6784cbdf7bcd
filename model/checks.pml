/* The checks, each with the mutant that leaves it out.  A mutant is compiled with -DM_NAME. */

#define LATER(r1, c1, r0, c0) (r1 > r0 || (r1 == r0 && c1 > c0))

#ifdef M_PREDICTABLE /* nonces can be guessed before they are issued */
#define KNOWN_NONCE(n, k) (nonces[n].kid == k || n >= issued)
#define GUESSED true
#else
#define KNOWN_NONCE(n, k) (n < issued && nonces[n].kid == k)
#define GUESSED false
#endif

#ifdef M_SIGNATURE
#define BY_AK(q, k) true
#else
#define BY_AK(q, k) (q.signer == k)
#endif

#ifdef M_X /* the qualifying data does not cover X */
#define COVERS(q, point) true
#else
#define COVERS(q, point) (q.x == point)
#endif

#ifdef M_PCRS
#define AS_APPROVED(q) true
#else
#define AS_APPROVED(q) (q.pcrs == APPROVED)
#endif

/* Step 9: the nonce says which evidence the quote has to be newer than, so two quotes of one boot may overtake each other;
 * a quote of an earlier boot than the newest evidence is refused all the same. */
#if defined(M_STRICT_CLOCK)
#define IN_ORDER(q, n, k) LATER(q.reset, q.clock, newest_reset[k], newest_clock[k])
#elif defined(M_EARLIER_BOOT)
#define IN_ORDER(q, n, k) LATER(q.reset, q.clock, nonces[n].reset, nonces[n].clock)
#else
#define IN_ORDER(q, n, k) (LATER(q.reset, q.clock, nonces[n].reset, nonces[n].clock) && q.reset >= newest_reset[k])
#endif

#if defined(M_REPLAY) /* a nonce's use is not recorded */
#define UNUSED(n) true
#define USE(n) skip
#elif defined(M_RACE) /* it is looked up before the transaction, and recorded without a unique constraint */
#define UNUSED(n) true
#define USE(n) used[n] = true
#else
#define UNUSED(n) (!used[n])
#define USE(n) used[n] = true
#endif

#ifdef M_REMOVAL /* the device is not looked at again in the transaction */
#define NOT_REMOVED(k) true
#else
#define NOT_REMOVED(k) (!removed[k])
#endif

#ifdef M_SUSPENSION
#define NOT_SUSPENDED(k) true
#else
#define NOT_SUSPENDED(k) (!suspended[k])
#endif

#ifdef M_RETIREMENT
#define NOT_RETIRED true
#else
#define NOT_RETIRED (!retired)
#endif
