//go:build !linux

package platform

// Features returns that nothing is on.
func (s *Socket) Features() Features { return Features{} }
