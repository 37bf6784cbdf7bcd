/* Liveness: each honest machine eventually opens its disks without a passphrase.
 *
 * Two volumes are opened in parallel, at two replicas, in each of two boots.  The network delays and reorders; one replica
 * dies between its commit and its answer.  Nobody lies here: an intruder who drops every message keeps a disk closed for
 * ever, which no protocol prevents.  Checked under weak fairness.
 */

#define VOLUMES 2
#define BOOTS 2
#define DEATHS 1
#define NONCES 6 /* two for each boot, one more for each that a death takes along */
#define QUOTES NONCES
#define REPLICAS 2
#define X_INTRUDER 255

#include "verifier.pml"

mtype = { Y, REFUSED, LOST };

chan requests = [VOLUMES] of { byte };           /* a volume, whose request is quotes[it] for its nonce and X */
chan answers[VOLUMES] = [1] of { mtype };
Quote quotes[VOLUMES];
byte clock = 0, reset = 0, deaths = 0, open_volumes = 0, boots = 0;

inline quote(volume, n)
{
	clock++;
	quotes[volume].signer = VICTIM;
	quotes[volume].pcrs = APPROVED;
	quotes[volume].reset = reset;
	quotes[volume].clock = clock;
	quotes[volume].nonce = n;
	quotes[volume].kid = VICTIM;
	quotes[volume].x = 1 + n;
	quotes[volume].initrd = true;
	quotes[volume].fresh = true
}

proctype Unlock(byte volume)
{
	byte n;
	mtype answer;
again:
	atomic { n = issued; issue(VICTIM) }
	atomic { quote(volume, n); n = 0 }
	requests!volume;
	answers[volume]?answer;
	if
	:: answer == Y -> open_volumes++
#ifndef M_NO_RETRY
	:: answer == LOST -> goto again /* with another nonce */
#endif
	:: else /* the passphrase prompt */
	fi
}

active proctype Machine()
{
	do
	:: boots < BOOTS ->
		atomic {
			reset++;
			open_volumes = 0;
			run Unlock(0);
			run Unlock(1)
		}
		open_volumes == VOLUMES;
		boots++
	:: boots == BOOTS -> break
	od
}

active [REPLICAS] proctype Replica()
{
	byte volume, n, x;
	Quote q;
	bool good;
end:
	do
	:: atomic {
			requests?volume ->
			q.signer = quotes[volume].signer; q.pcrs = quotes[volume].pcrs;
			q.reset = quotes[volume].reset; q.clock = quotes[volume].clock;
			q.nonce = quotes[volume].nonce; q.kid = quotes[volume].kid;
			q.x = quotes[volume].x; q.initrd = true; q.fresh = true;
			n = q.nonce;
			x = q.x;
			appraise(VICTIM, n, x, q, good)
		}
		atomic { commit(VICTIM, n, x, q, good) }
		if
		:: good -> answers[volume]!Y
		:: !good -> answers[volume]!REFUSED
		:: atomic { deaths < DEATHS -> deaths++ }
			answers[volume]!LOST /* the client's timeout */
		fi;
		atomic { volume = 0; n = 0; x = 0; good = false }
	od
}

ltl opens { <> (boots == BOOTS) }
