package control

// Keys beside those of an IKE SA and of an alert.
const (
	KeyNATFake   = "nat-fake" // yes, or absent: no NAT is there, but the peer is made to believe so
	KeyAlertType = "type"     // charon's name of the alert
)
