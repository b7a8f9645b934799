package control

// What nhrpd of FRR asks for and charon has only with a patch: an event for each state of a CHILD
// SA, <connection>{... child-sas{the one}}, and between which addresses initiate is to make one.
const (
	EvChildInstalled    = "child-state-installed"
	EvChildRekeyedState = "child-state-rekeyed"
	EvChildDestroying   = "child-state-destroying"

	KeyMyHost    = "my-host"
	KeyOtherHost = "other-host"
)
