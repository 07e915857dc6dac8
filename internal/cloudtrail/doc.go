// Package cloudtrail writes audit records in the shape of AWS CloudTrail's (event version 1.11; CloudTrail user guide, "CloudTrail record
// contents"): one line of JSON a record, appended without allocating, valid whatever bytes a client sent, and of at most SizeMax bytes.
//
// What is too long is cut or left out by these rules; N is what a part takes in the record, escapes included:
//
//	userAgent, errorMessage      cut before the character that would make N exceed 1 024
//	requestParameters            left out if N > 45 056
//	responseElements, additionalEventData, serviceEventDetails
//	                             left out if N exceeds what the parts before it leave of 47 104
//	every other text             cut like userAgent, at the length beside its field
//
// Of a part that is left out the record says what CloudTrail says: {"omitted":true,"originalSize":…,"reason":"requestParameters too large"}.
//
// The record never decides what is a secret: who fills it names each member that goes into it.
package cloudtrail
