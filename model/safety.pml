/* Safety: no Y without a fresh quote of an approved, uncapped state of that device for that X, and none after a removal,
 * a suspension or a retirement was acknowledged, against an intruder who owns the network.
 *
 * The intruder delivers, drops, repeats and composes messages; owns a sibling device, whose TPM signs anything;
 * boots other software on the honest machine; and is root on it once it runs.  They cannot sign for its TPM, guess a nonce,
 * or look into the initrd.  So every choice below is the intruder's, unless a comment says whose it is.
 */

#define NONCES 2
#define BOOTS 2
#define QUOTES 2  /* by the honest initrd */
#define REPLICAS 2
#define CLOCKS 9 /* later than every clock */
#define REQUESTS 2 /* for each replica */
#define X_INTRUDER 0
#define BY_SIBLING QUOTES      /* signed on demand by the sibling's TPM */
#define BY_VICTIM (QUOTES + 1) /* signed on demand by the honest machine's TPM, for software of the intruder */

#include "verifier.pml"

mtype = { OFF, INITRD, RUNNING, FOREIGN };

mtype phase = OFF;
mtype pcrs = OTHER;
byte reset = 0, clock = 0;
Quote quotes[QUOTES]; /* everything that the honest initrd ever sent */
byte sent = 0;
bool intruder_has_root = false;

inline copy(to, from)
{
	to.signer = from.signer; to.pcrs = from.pcrs; to.reset = from.reset; to.clock = from.clock;
	to.nonce = from.nonce; to.kid = from.kid; to.x = from.x; to.initrd = from.initrd; to.fresh = from.fresh
}

inline made(to, by, value, boot, at, for_kid, for_nonce, for_x)
{
	to.signer = by; to.pcrs = value; to.reset = boot; to.clock = at;
	to.nonce = for_nonce; to.kid = for_kid; to.x = for_x; to.initrd = false; to.fresh = for_nonce < issued
}

inline forget(it)
{
	it.signer = 0; it.pcrs = OTHER; it.reset = 0; it.clock = 0;
	it.nonce = 0; it.kid = 0; it.x = 0; it.initrd = false; it.fresh = false
}

/* The honest machine.  Its point X is new in each request, and its secret never leaves the initrd. */
active proctype Machine()
{
	byte n;
	do
	:: reset < BOOTS && (phase == OFF || phase == RUNNING || phase == FOREIGN) ->
		atomic { /* a reset clears the PCRs */
			reset++;
			clock++;
			intruder_has_root = false;
			if
			:: phase = INITRD; pcrs = APPROVED
			:: phase = FOREIGN; pcrs = OTHER; intruder_has_root = true
			fi
		}
	:: phase == INITRD && sent < QUOTES -> /* a challenge arrives, true or not */
		atomic {
			select(n : 0 .. NONCES - 1);
			if
			:: n < issued || GUESSED ->
				clock++;
				quotes[sent].signer = VICTIM;
				quotes[sent].pcrs = pcrs;
				quotes[sent].reset = reset;
				quotes[sent].clock = clock;
				quotes[sent].nonce = n;
				quotes[sent].kid = VICTIM;
				quotes[sent].x = 1 + sent;
				quotes[sent].initrd = true;
				quotes[sent].fresh = n < issued;
				sent++
			:: else
			fi;
			n = 0
		}
	:: phase == INITRD -> /* the disk is open, by attestation or passphrase, or the person gave up */
#if !defined(M_NO_CAP) && !defined(M_LATE_CAP)
		pcrs = CAPPED;
#endif
		atomic { phase = RUNNING; intruder_has_root = true }
#ifdef M_LATE_CAP
		pcrs = CAPPED
#endif
	:: reset == BOOTS && phase != INITRD -> break
	od
}

/* One replica, and the intruder who chooses each request to it. */
active [REPLICAS] proctype Replica()
{
	byte requests = 0, k, n, x, which;
	bool good;
	Quote q;
	do
	:: issue(VICTIM)
	:: issue(SIBLING)
	:: requests < REQUESTS ->
		atomic { /* a request that is refused here leaves no trace, so it does not count */
			select(k : 0 .. DEVICES - 1);
			select(n : 0 .. NONCES - 1);
			select(x : 0 .. QUOTES);
			select(which : 0 .. BY_VICTIM);
			if
			:: which < sent -> copy(q, quotes[which])
			:: which == BY_SIBLING -> made(q, SIBLING, APPROVED, BOOTS, CLOCKS, k, n, x)
			:: which == BY_VICTIM && intruder_has_root -> made(q, VICTIM, pcrs, reset, clock, k, n, x)
			:: else -> forget(q) /* there is no such quote */
			fi;
			appraise(k, n, x, q, good);
			if
			:: good -> requests++
			:: else -> goto answered
			fi
		}
		atomic { /* meanwhile, everybody else went on */
			commit(k, n, x, q, good);
answered:		good = false; forget(q); k = 0; n = 0; x = 0; which = 0
		}
	:: requests == REQUESTS -> break
	od
}

/* The operator removes, suspends or withdraws, and hears of it. */
active proctype Operator()
{
	if
	:: removed[VICTIM] = true; removal_told = true
	:: suspended[VICTIM] = true; suspension_told = true;
		atomic { suspension_told = false; suspended[VICTIM] = false }
	:: retired = true; retirement_told = true
	:: skip
	fi
}
