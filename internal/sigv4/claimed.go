package sigv4

import "bytes"

// Claimed is the access key ID and the service that the Authorization header of a request names, whether it is signed or not; both nil where
// it names none in the right form. The slices alias the request's.
func Claimed(r *Request) (accessKeyID, service []byte) {
	for i := range r.Headers {
		if string(r.Headers[i].Name) != "authorization" {
			continue
		}
		_, rest, ok := bytes.Cut(r.Headers[i].Value, []byte("Credential="))
		if !ok {
			return nil, nil
		}
		id, rest, _ := bytes.Cut(rest, []byte("/"))
		_, rest, _ = bytes.Cut(rest, []byte("/")) // date
		_, rest, _ = bytes.Cut(rest, []byte("/")) // region
		service, _, ok := bytes.Cut(rest, []byte("/"))
		if !ok || !validAccessKeyID(id) || len(service) > serviceMax {
			return nil, nil
		}
		return id, service
	}
	return nil, nil
}
