/* The verifier: its record, and the two steps in which a replica decides one request.
 *
 * Source: docs/protocol.md, sections 3.3 (order of checks) and 3.4 (the race).
 */

#define DEVICES 2 /* 0: the honest machine.  1: a sibling whose TPM signs whatever the intruder wants. */
#define VICTIM 0
#define SIBLING 1

#include "checks.pml"

mtype = { APPROVED, CAPPED, OTHER }; /* values of the PCRs, the cap PCR among them */

typedef Quote { /* an unforgeable statement of the TPM of device `signer` */
	byte signer;
	mtype pcrs;
	byte reset; /* resetCount */
	byte clock;
	byte nonce; /* the next three are covered by the qualifying data */
	byte kid;
	byte x;
	bool initrd; /* ghost: made by the measured initrd, before the cap */
	bool fresh   /* ghost: its nonce had been issued */
}

typedef Nonce { /* issued nonces carry their data with them; nobody else reads or makes them */
	byte kid;
	byte reset; /* the device's newest evidence when the nonce was made */
	byte clock
}

/* The database that all replicas share.  What a step below does to it inside atomic is one transaction. */
Nonce nonces[NONCES];
byte issued = 0;
bool used[NONCES];
bool removed[DEVICES], suspended[DEVICES], retired;
byte newest_reset[DEVICES], newest_clock[DEVICES];

/* Ghosts: changes that were acknowledged to the operator, and what was released. */
bool removal_told, suspension_told, retirement_told;
byte released[NONCES];

inline issue(k)
{
	atomic {
		(issued < NONCES && !removed[k]) ->
		nonces[issued].kid = k;
		nonces[issued].reset = newest_reset[k];
		nonces[issued].clock = newest_clock[k];
		issued++
	}
}

/* The properties of a release.  Without -DPROPERTY=N all of them are checked. */
#ifndef PROPERTY
#define PROPERTY 0
#endif
#ifdef M_NEVER /* no mutant: it shows that a release is reached at all */
#define REACHABLE false
#else
#define REACHABLE true
#endif
#define CHECK(number, condition) assert((PROPERTY != 0 && PROPERTY != number) || (condition))

inline check_release(k, n, x, q)
{
	CHECK(1, q.signer == k);                        /* a quote of that device's TPM */
	CHECK(2, q.x == x);                             /* for that X */
	CHECK(3, k != VICTIM || x != X_INTRUDER);       /* never for an X whose secret the intruder has */
	CHECK(4, q.pcrs == APPROVED);                   /* of approved values */
	CHECK(5, k != VICTIM || q.initrd);              /* by the measured initrd, before the cap */
	CHECK(6, q.fresh && released[n] == 0);          /* fresh, and for one answer */
	CHECK(7, q.reset >= newest_reset[k]);           /* of no boot before the newest one seen */
	CHECK(8, k != VICTIM || !removal_told);         /* not after a removal was acknowledged */
	CHECK(9, k != VICTIM || !suspension_told);      /* not after a suspension was acknowledged */
	CHECK(10, !retirement_told);                    /* not after a retirement was acknowledged */
	assert(REACHABLE)
}

/* Steps 1 to 8 and the policy's first look, at what is read once, before the transaction. */
inline appraise(k, n, x, q, good)
{
	good = KNOWN_NONCE(n, k) && !used[n] && BY_AK(q, k) && q.nonce == n && q.kid == k && COVERS(q, x) &&
	    AS_APPROVED(q) && !removed[k] && !suspended[k] && !retired
}

/* Steps 9 and 10, and every condition once more, inside one transaction (the caller's atomic). */
inline commit(k, n, x, q, good)
{
	if
	:: good && IN_ORDER(q, n, k) && UNUSED(n) && NOT_REMOVED(k) && NOT_SUSPENDED(k) && NOT_RETIRED ->
		check_release(k, n, x, q);
		USE(n);
		released[n]++;
		if
		:: LATER(q.reset, q.clock, newest_reset[k], newest_clock[k]) ->
			newest_reset[k] = q.reset;
			newest_clock[k] = q.clock
		:: else
		fi
	:: else -> good = false
	fi
}
