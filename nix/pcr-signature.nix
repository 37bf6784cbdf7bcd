# Settings of ukify (boot.uki.settings) that sign PCR 11 of a generation for the phase enter-initrd, and for no other:
# values of later phases can be quoted by root on a running machine.
{
  # A string: a path outside of the store, whose files everybody can read.
  privateKey,
  # A PEM file; a path goes into the store.
  publicKey,
}:
let
  text = toString privateKey;
  inStore =
    !builtins.isString privateKey
    || builtins.substring 0 (builtins.stringLength builtins.storeDir) text == builtins.storeDir
    || builtins.hasContext text;
in
if inStore then
  throw "pcrSignature: privateKey has to be a string with a path outside of the store, such as \"/var/keys/initrd.key\": everybody can read what is in the store."
else if builtins.substring 0 1 text != "/" then
  throw "pcrSignature: privateKey '${text}' is not an absolute path."
else
  {
    UKI.PCRBanks = "sha256";
    "PCRSignature:initrd" = {
      PCRPrivateKey = privateKey;
      PCRPublicKey = "${publicKey}";
      Phases = "enter-initrd";
    };
  }
