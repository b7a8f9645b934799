package platform

import "postern/esp/ctaes"

// AES tells whether the processor has instructions for AES and for GCM's multiplication that
// Go's library uses.
func AES() bool { return ctaes.Detect().AES }

// WideAES tells whether it has these instructions for vectors of 64 octets as well.
func WideAES() bool { return ctaes.Detect().Wide }
